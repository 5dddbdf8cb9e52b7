"""Training runs in this process, on a real and small model, with the runner's end of the link."""

import json
import shutil
from pathlib import Path
from typing import Any

from engine.plan import Evaluated, Finished, Report, Saved, Started, Stepped, TrainPlan, Warned
from engine.spec import ROWS_OF_METHOD, Method, Peft
from engine.train.child import METHODS
from tests.workers import conversations


class Reports:
    """Keeps what it is told, and every checkpoint."""

    def __init__(self, checkpoints: Path, directive: str) -> None:
        self.directive = directive
        self.checkpoints = checkpoints
        self.started: Started | None = None
        self.metrics: dict[int, dict[str, float]] = {}
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.warnings: list[str] = []

    def send(self, report: Report) -> None:
        match report:
            case Started():
                self.started = report
            case Stepped():
                self.metrics[report.step] = report.metrics
            case Evaluated():
                self.evaluations.append((report.step, report.metrics))
            case Warned():
                self.warnings.append(report.message)
            case Saved():
                shutil.copytree(report.path, self.checkpoints / report.path.name)


def rows_for(method: str, count: int) -> list[dict[str, Any]]:
    """Rows of the method's type: saying a number is good, saying none is bad."""
    said = [row["messages"] for row in conversations(count)]
    asked = [{"prompt": messages[:1]} for messages in said]
    answers = [messages[1:] for messages in said]
    bad = [{"role": "assistant", "content": "no"}]
    match ROWS_OF_METHOD[method]:
        case "conversation":
            return [{"messages": messages} for messages in said]
        case "preference":
            pairs = zip(asked, answers, strict=True)
            return [row | {"chosen": answer, "rejected": bad} for row, answer in pairs]
        case "rating":
            rated = enumerate(zip(asked, answers, strict=True))
            return [
                row | {"completion": bad if i % 2 else answer, "label": not i % 2}
                for i, (row, answer) in rated
            ]
        case "prompt":
            return asked


def train(
    base: Path,
    work_dir: Path,
    method: Method,
    peft: Peft,
    *,
    rows: list[dict[str, Any]] | None = None,
    directive: str = "continue",
    **plan: Any,
) -> tuple[Finished, Reports]:
    """Run a method to its end, on eleven rows where none are given."""
    work_dir.mkdir()
    path = work_dir / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows or rows_for(method.type, 11)))
    settings = {"seed": 3, "checkpoint_every": 1, "resume_from": None, "threads": 1} | plan
    made = TrainPlan(
        base_name="tiny",
        base_path=base,
        dataset_path=path,
        dataset_format="jsonl",
        row_type=ROWS_OF_METHOD[method.type],
        method=method,
        peft=peft,
        work_dir=work_dir,
        **settings,
    )
    reports = Reports(work_dir / "kept", directive)
    return METHODS[method.type](made, reports), reports  # type: ignore[arg-type]  # as Link is


def bytes_of(finished: Finished) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in finished.path.iterdir()}
