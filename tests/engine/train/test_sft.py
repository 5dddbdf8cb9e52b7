"""SFT on a real, small model, in this process: what is resumed ends as what was never stopped."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from engine.plan import Finished, Saved, Stepped, TrainPlan, Warned
from engine.spec import (
    FullPeft,
    LoraPeft,
    Peft,
    PrefixTuningPeft,
    PromptTuningPeft,
    QloraPeft,
    SftMethod,
)
from engine.train import sft
from engine.train.errors import TrainingFailed
from tests.bases import make_base
from tests.workers import conversations

QUANTIZES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


class Reports:
    """The runner's end of the link: keeps what it is told, and every checkpoint."""

    directive = "continue"

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self.metrics: dict[int, dict[str, float]] = {}
        self.warnings: list[str] = []

    def send(self, report: Any) -> None:
        if isinstance(report, Stepped):
            self.metrics[report.step] = report.metrics
        if isinstance(report, Warned):
            self.warnings.append(report.message)
        if isinstance(report, Saved):
            shutil.copytree(report.path, self.checkpoints / report.path.name)


def train(
    base: Path, work_dir: Path, peft: Peft, method: SftMethod, resume_from: Path | None = None
) -> tuple[Finished, Reports]:
    work_dir.mkdir()
    rows = work_dir / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in conversations(11)))
    plan = TrainPlan(
        base_name="tiny",
        base_path=base,
        dataset_path=rows,
        dataset_format="jsonl",
        row_type="conversation",
        method=method,
        peft=peft,
        seed=3,
        checkpoint_every=1,
        work_dir=work_dir,
        resume_from=resume_from,
        threads=1,
    )
    reports = Reports(work_dir / "kept")
    return sft.train(plan, reports), reports  # type: ignore[arg-type]  # as Link is


def bytes_of(finished: Finished) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in finished.path.iterdir()}


@pytest.mark.parametrize(
    "peft",
    [
        pytest.param(LoraPeft(r=4, lora_dropout=0.3), id="lora"),
        pytest.param(LoraPeft(r=4, use_dora=True), id="dora"),
        pytest.param(QloraPeft(r=4), id="qlora", marks=QUANTIZES),
        pytest.param(PromptTuningPeft(num_virtual_tokens=4), id="prompt"),
        pytest.param(PrefixTuningPeft(num_virtual_tokens=4), id="prefix"),
        pytest.param(FullPeft(), id="full"),
    ],
)
def test_a_run_resumed_from_any_checkpoint_is_the_run_that_was_not_stopped(
    base: Path, tmp_path: Path, peft: Peft
) -> None:
    # 11 rows in batches of 2 x 2: both the last batch and the last accumulation are short.
    method = SftMethod(
        num_train_epochs=2,
        per_device_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
    )
    whole, reports = train(base, tmp_path / "whole", peft, method)
    assert list(reports.metrics) == [1, 2, 3, 4, 5, 6]
    kept = reports.checkpoints
    for step in (2, 3, 5):  # in the middle of an epoch, at its end, and from a resumed run's own
        resumed, again = train(
            base, tmp_path / f"from-{step}", peft, method, kept / f"checkpoint-{step}"
        )
        kept = again.checkpoints if step == 3 else kept
        assert again.metrics == {n: found for n, found in reports.metrics.items() if n > step}
        assert bytes_of(resumed) == bytes_of(whole)
        assert resumed.probes == whole.probes
        assert resumed.metrics == whole.metrics


def test_a_checkpoint_is_a_flat_folder_whatever_the_tokenizer_brings(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    others = base / "additional_chat_templates"
    others.mkdir()
    (others / "tool_use.jinja").write_text("{{ messages }}")
    method = SftMethod(max_steps=2, learning_rate=1e-3)
    _, reports = train(base, tmp_path / "run", LoraPeft(r=4), method)
    (checkpoint,) = reports.checkpoints.iterdir()
    assert all(path.is_file() for path in checkpoint.iterdir())


def test_a_run_that_diverges_in_its_last_step_is_told_so(base: Path, tmp_path: Path) -> None:
    method = SftMethod(max_steps=1, learning_rate=1.0, warmup_ratio=0)
    with pytest.raises(TrainingFailed, match=r"`method\.learning_rate`") as failed:
        train(base, tmp_path / "run", LoraPeft(r=2, lora_alpha=1e20), method)
    assert failed.value.code == "diverged"
