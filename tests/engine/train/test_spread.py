"""Runs that several processes share: the same steps as one process makes, and one result."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from engine.infer.probes import compute_logprobs
from engine.plan import (
    Evaluated,
    Failed,
    Finished,
    Report,
    Saved,
    Spread,
    Stepped,
    Stopped,
    TrainPlan,
)
from engine.spec import (
    ROWS_OF_METHOD,
    DpoMethod,
    FullPeft,
    LoraPeft,
    Method,
    OrpoMethod,
    Peft,
    QloraPeft,
    RewardMethod,
    SftMethod,
)
from jobs.launcher import LocalLauncher, Running
from tests.bases import make_base
from tests.engine.train.runs import rows_for

LORA = LoraPeft(r=4)
ROWS = 16
BATCH = 4  # of all processes together


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def launcher() -> LocalLauncher:
    return LocalLauncher()


class Runs:
    """Starts runs in folders of their own, and follows them to their last word."""

    def __init__(self, base: Path, folder: Path, launcher: LocalLauncher) -> None:
        self._base, self._folder, self._launcher, self._count = base, folder, launcher, 0

    def start(self, method: Method, peft: Peft, processes: int, **plan: Any) -> Running:
        self._count += 1
        work_dir = self._folder / f"run-{self._count}"
        work_dir.mkdir()
        rows = work_dir / "rows.jsonl"
        rows.write_text("\n".join(json.dumps(row) for row in rows_for(method.type, ROWS)))
        settings = {"seed": 3, "checkpoint_every": 100, "resume_from": None} | plan
        spread = settings.pop("spread", Spread(processes=processes))
        return self._launcher.start(
            TrainPlan(
                base_name="tiny",
                base_path=self._base,
                dataset_path=rows,
                dataset_format="jsonl",
                row_type=ROWS_OF_METHOD[method.type],
                method=method,
                peft=peft,
                work_dir=work_dir,
                threads=2,
                spread=spread,
                **settings,
            )
        )

    def run(
        self, method: Method, peft: Peft, processes: int, **plan: Any
    ) -> tuple[Report, list[Report]]:
        return follow(self.start(method, peft, processes, **plan))


@pytest.fixture
def runs(base: Path, tmp_path: Path, launcher: LocalLauncher) -> Runs:
    return Runs(base, tmp_path, launcher)


def follow(
    child: Running, during: Callable[[Running, Report], None] = lambda child, report: None
) -> tuple[Report, list[Report]]:
    """Its last word, and all that it said before."""
    said: list[Report] = []
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            report = child.receive(0.1)
            if isinstance(report, Finished | Stopped | Failed):
                return report, said
            if report is not None:
                said.append(report)
                during(child, report)
        raise AssertionError(f"no end in sight after {said[-3:]}")
    finally:
        child.kill()


def losses(said: list[Report]) -> list[float]:
    return [report.metrics["loss"] for report in said if isinstance(report, Stepped)]


def evaluated(said: list[Report]) -> list[float]:
    return [report.metrics["eval_loss"] for report in said if isinstance(report, Evaluated)]


def method_of(kind: type[Any], processes: int, **changed: Any) -> Any:
    """The same steps however many processes make them."""
    common = {
        "num_train_epochs": 2,
        "learning_rate": 5e-3,
        "warmup_ratio": 0,
        "per_device_batch_size": BATCH // processes,
    }
    return kind(**(common | changed))


def done(last: Report) -> Finished:
    assert isinstance(last, Finished), last
    return last


@pytest.mark.parametrize(
    ("kind", "peft", "changed"),
    [
        pytest.param(SftMethod, LORA, {}, id="sft with lora"),
        pytest.param(SftMethod, LORA, {"packing": True}, id="packed"),
        pytest.param(SftMethod, LORA, {"packing": True, "kl_coef": 0.1}, id="packed, with a KL"),
        pytest.param(SftMethod, FullPeft(), {"validation_split": 0.25}, id="full, sharded"),
        pytest.param(SftMethod, FullPeft(), {"kl_coef": 0.1}, id="full, with a KL"),
        pytest.param(SftMethod, QloraPeft(r=4), {}, id="qlora"),
        pytest.param(DpoMethod, LORA, {}, id="dpo"),
        pytest.param(OrpoMethod, LORA, {}, id="orpo"),
        pytest.param(RewardMethod, LORA, {}, id="reward"),
    ],
)
def test_two_processes_make_the_steps_of_one(
    runs: Runs, kind: type[Any], peft: Peft, changed: dict[str, Any]
) -> None:
    one, said_by_one = runs.run(method_of(kind, 1, **changed), peft, 1)
    two, said_by_two = runs.run(method_of(kind, 2, **changed), peft, 2)

    assert losses(said_by_two) == pytest.approx(losses(said_by_one), abs=1e-4)
    assert len(losses(said_by_two)) >= 2
    assert evaluated(said_by_two) == pytest.approx(evaluated(said_by_one), abs=1e-3)
    found, wanted = done(two), done(one)
    assert {path.name for path in found.path.iterdir()} == {
        path.name for path in wanted.path.iterdir()
    }
    for ours, theirs in zip(found.probes, wanted.probes, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
    for ours_, theirs_ in zip(found.scores, wanted.scores, strict=True):
        assert ours_.score == pytest.approx(theirs_.score, abs=1e-3)


def test_a_sharded_full_model_is_whole_and_what_its_probes_say(runs: Runs) -> None:
    last, _ = runs.run(method_of(SftMethod, 2), FullPeft(), 2)
    finished = done(last)
    model = AutoModelForCausalLM.from_pretrained(finished.path, dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"
    for probe in finished.probes:
        found = compute_logprobs(model, list(probe.token_ids), probe.prompt_tokens)
        assert found == pytest.approx(probe.logprobs, abs=1e-4)
        assert found != pytest.approx(probe.base_logprobs, abs=1e-2)


def test_a_base_that_one_process_has_no_room_for_is_sharded_under_its_lora(
    runs: Runs, base: Path
) -> None:
    wanted, said_by_one = runs.run(method_of(SftMethod, 1), LORA, 1)
    large = Spread(processes=2, peak_bytes=1 << 60)
    last, said = runs.run(method_of(SftMethod, 2), LORA, 2, spread=large)

    assert losses(said) == pytest.approx(losses(said_by_one), abs=1e-4)
    assert sorted(p.name for p in done(last).path.iterdir()) == sorted(
        p.name for p in done(wanted).path.iterdir()
    )
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, done(last).path).eval()
    for probe in done(last).probes:
        found = compute_logprobs(model, list(probe.token_ids), probe.prompt_tokens)
        assert found == pytest.approx(probe.logprobs, abs=1e-4)


@pytest.mark.parametrize("peft", [LORA, FullPeft()], ids=["lora", "full"])
def test_a_paused_run_goes_on_with_as_many_processes_in_the_same_losses(
    runs: Runs, peft: Peft, tmp_path: Path
) -> None:
    method = method_of(SftMethod, 2, num_train_epochs=3)
    _, whole = runs.run(method, peft, 2)

    def pause(child: Running, report: Report) -> None:
        if isinstance(report, Stepped) and report.step == 4:
            child.tell("pause")

    stopped, before = follow(runs.start(method, peft, 2), pause)
    assert stopped == Stopped(directive="pause")
    saved = [report for report in before if isinstance(report, Saved)]
    assert {path.name for path in saved[-1].path.glob("rng_state_*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    _, after = runs.run(method, peft, 2, resume_from=saved[-1].path)
    assert losses(before) + losses(after) == pytest.approx(losses(whole), abs=1e-5)


def test_a_cancel_stops_every_process(runs: Runs) -> None:
    def cancel(child: Running, report: Report) -> None:
        if isinstance(report, Stepped) and report.step == 2:
            child.tell("cancel")

    last, said = follow(runs.start(method_of(SftMethod, 2, num_train_epochs=500), LORA, 2), cancel)
    assert last == Stopped(directive="cancel")
    assert len(losses(said)) < 400


def test_a_dead_process_ends_the_run_with_its_signal(runs: Runs) -> None:
    child = runs.start(method_of(SftMethod, 2, num_train_epochs=500), LORA, 2)
    second = child._ranks[1]._process.pid  # type: ignore[attr-defined]  # the one to kill

    def kill(child: Running, report: Report) -> None:
        if isinstance(report, Stepped) and report.step == 2:
            os.kill(second, signal.SIGKILL)

    with pytest.raises(EOFError):
        follow(child, kill)
    assert child.exit_code() == -signal.SIGKILL
