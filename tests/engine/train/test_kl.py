"""The KL to the base: its figure against one computed by hand, and what it holds back."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from engine.render import load_renderer
from engine.rows import iter_rows
from engine.spec import FullPeft, LoraPeft, Peft, PrefixTuningPeft, PromptTuningPeft, SftMethod
from engine.train.examples import Example, conversations
from engine.train.kl import kl_to_base
from engine.train.model import load_base
from tests.bases import make_base
from tests.engine.train.runs import train
from tests.workers import REPO

TINY = REPO / "examples" / "models" / "luthier-tiny"  # it has something to be held near to

KINDS: dict[str, Peft] = {
    "lora": LoraPeft(r=4),
    "full": FullPeft(),
    "prompt_tuning": PromptTuningPeft(num_virtual_tokens=4),
    "prefix_tuning": PrefixTuningPeft(num_virtual_tokens=4),
}
ALL_ROWS: dict[str, Any] = {"per_device_batch_size": 11, "max_length": 64, "max_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def test_it_is_the_sum_over_the_whole_vocabulary_in_nats() -> None:
    policy, base = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    found = kl_to_base(torch.tensor([policy]).log(), torch.tensor([base]).log())
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert found.tolist() == [pytest.approx(expected, abs=1e-6)]


def figures(model: Any, plain: Any, examples: list[Example]) -> tuple[float, float]:
    """Cross-entropy and KL, means over trained tokens, one example and one position at a time."""
    losses, kls = [], []
    for example in examples:
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            ours = model(input_ids=ids).logits[0, -len(example.input_ids) :].double()
            theirs = plain(input_ids=ids).logits[0].double()
        for place in range(1, len(example.input_ids)):
            if example.labels[place] < 0:
                continue
            p, q = ours[place - 1].softmax(0), theirs[place - 1].softmax(0)
            losses.append(-math.log(p[example.input_ids[place]]))
            kls.append(sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(losses) / len(losses), sum(kls) / len(kls)


@pytest.mark.parametrize(
    ("kind", "packing"), [*((kind, False) for kind in KINDS), ("lora", True), ("full", True)]
)
def test_kl_and_loss_of_a_step_are_those_computed_by_hand(
    base: Path, tmp_path: Path, kind: str, packing: bool
) -> None:
    """From an adapter that was trained before: the base is still the base model."""
    peft = KINDS[kind]
    rate = 0.3 if kind in ("prompt_tuning", "prefix_tuning") else 2e-2
    warm = SftMethod(max_steps=5, learning_rate=rate, max_length=64)
    first, _ = train(base, tmp_path / "first", warm, peft)

    method = SftMethod(kl_coef=0.7, packing=packing, **ALL_ROWS)
    _, reports = train(base, tmp_path / "run", method, peft, init_from=first.path)

    plain = load_base(base).eval()
    tuned: Any = load_base(first.path if kind == "full" else base)
    if kind != "full":
        tuned = PeftModel.from_pretrained(tuned, first.path)
    rows = iter_rows(tmp_path / "run" / "rows.jsonl", "jsonl", "conversation")
    examples = conversations(rows, load_renderer(base), 64).examples
    loss, kl = figures(tuned.eval(), plain, examples)
    assert kl > 0.001
    step = reports.metrics[1]
    assert step["kl"] == pytest.approx(kl, abs=1e-5)
    assert step["loss"] == pytest.approx(loss + 0.7 * kl, abs=2e-5)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_coefficient_holds_the_policy_near_the_base(tmp_path: Path, kind: str) -> None:
    found = {}
    for kl_coef in (1e-9, 3.0):
        method = SftMethod(
            max_steps=15,
            per_device_batch_size=4,
            learning_rate=1e-4 if kind == "full" else 2e-3,
            max_length=64,
            validation_split=0.2,
            kl_coef=kl_coef,
        )
        _, reports = train(TINY, tmp_path / f"{kl_coef}", method, KINDS[kind])
        before, after = (metrics for _, metrics in reports.evaluations)
        assert before["eval_kl"] == pytest.approx(0, abs=1e-6)
        assert after["eval_loss"] < before["eval_loss"], "it learns all the same"
        found[kl_coef] = after["eval_kl"]
    assert found[3.0] < found[1e-9] / 2


def test_it_is_not_measured_where_it_costs_nothing(base: Path, tmp_path: Path) -> None:
    _, reports = train(base, tmp_path / "run", SftMethod(**ALL_ROWS), LoraPeft(r=4))
    assert "kl" not in reports.metrics[1]
