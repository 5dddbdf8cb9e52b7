"""Margins of preferences: a reward model keeps to them, and other methods do not read them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import set_seed

from engine.render import load_renderer
from engine.rows import iter_rows
from engine.spec import DpoMethod, LoraPeft, Method, OrpoMethod, RewardMethod
from engine.train.examples import preferences
from engine.train.reward_model import load_headed_base, scores
from tests.bases import make_base
from tests.engine.train.runs import bytes_of, rows_for, train

SEED = 3  # of the runs
MARGINS: list[dict[str, Any]] = [
    {"margin": 2.5},
    {},
    {"margin": 0},
    {"margin": None},
    {"margin": 1},
]
OFFSETS = [2.5, 0, 0, 0, 1]
ONE_BATCH: dict[str, Any] = {"max_length": 64, "per_device_batch_size": 5, "warmup_ratio": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def rows(method: str, margins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | m for row, m in zip(rows_for(method, len(margins)), margins, strict=True)]


@pytest.mark.parametrize("center", [None, 0.1])
def test_the_loss_is_that_of_the_equation_where_some_rows_have_margins(
    base: Path, tmp_path: Path, center: float | None
) -> None:
    method = RewardMethod(max_steps=1, center_rewards_coefficient=center, **ONE_BATCH)
    _, reports = train(
        base, tmp_path / "run", method, LoraPeft(r=4), rows=rows("reward", MARGINS), seed=SEED
    )

    renderer = load_renderer(base)
    read = iter_rows(tmp_path / "run" / "rows.jsonl", "jsonl", "preference")
    pairs = preferences(read, renderer, 64).examples
    set_seed(SEED)
    untrained = load_headed_base(base, renderer.contract.pad_token_id)
    chosen = torch.tensor(scores(untrained, [pair.chosen.input_ids for pair in pairs]))
    rejected = torch.tensor(scores(untrained, [pair.rejected.input_ids for pair in pairs]))
    expected = -F.logsigmoid(chosen - rejected - torch.tensor(OFFSETS)).mean()
    expected += (center or 0) * ((chosen + rejected) ** 2).mean()
    assert reports.metrics[1]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_a_wider_margin_is_learned_as_a_wider_one(base: Path, tmp_path: Path) -> None:
    learned = []
    for margin in (0.0, 8.0):
        method = RewardMethod(max_steps=40, learning_rate=3e-3, **ONE_BATCH)
        given = rows("reward", [{"margin": margin}] * 5)
        _, reports = train(base, tmp_path / str(margin), method, LoraPeft(r=4), rows=given)
        learned.append(reports.metrics[40]["margin"])
    assert learned[1] > learned[0] + 2


@pytest.mark.parametrize("method", [DpoMethod(max_steps=2, **ONE_BATCH), OrpoMethod(max_steps=2)])
def test_other_methods_do_not_read_margins(base: Path, tmp_path: Path, method: Method) -> None:
    with_them, _ = train(
        base, tmp_path / "with", method, LoraPeft(r=4), rows=rows(method.type, MARGINS)
    )
    without, _ = train(
        base, tmp_path / "without", method, LoraPeft(r=4), rows=rows(method.type, [{}] * 5)
    )
    assert bytes_of(with_them) == bytes_of(without)
