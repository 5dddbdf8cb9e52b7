"""`luthier demo`: the whole path on this machine, from a dataset to an adapter that learned it."""

import _thread
import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cli.configuration import read_settings
from cli.failure import CommandFailed

if TYPE_CHECKING:
    from cli.client import Client
    from cli.service import Service

SHOWN = 5
MAX_TOKENS = 96
ADAPTER_BAR, BASE_BAR = 0.90, 0.20  # what --check asks: learned, and not known before
_TOGETHER = 8
_TRAIN, _HELD_OUT, _JOB = "demo_train.jsonl", "demo_heldout.jsonl", "demo_job.json"


class Question(NamedTuple):
    messages: list[dict[str, str]]
    expected: str

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


class Answered(NamedTuple):
    question: Question
    base: str
    adapter: str

    @property
    def base_right(self) -> bool:
        return self.base.strip() == self.question.expected.strip()

    @property
    def adapter_right(self) -> bool:
        return self.adapter.strip() == self.question.expected.strip()


def demo(
    check: Annotated[
        bool,
        typer.Option("--check", help="Ask every held-out prompt; fail when too few are right."),
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Kept afterwards. [.luthier/demo]")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option("--examples", help=f"Another {_TRAIN}, {_HELD_OUT}, {_JOB}.")
    ] = None,
) -> None:
    """Fine-tune the model that ships, and compare it with its base."""
    from cli import look
    from cli.roles import check_names
    from cli.serve import trouble
    from cli.service import Service

    check_names()
    folder = _folder(examples)
    spec = json.loads((folder / _JOB).read_text())
    questions = _questions(folder / _HELD_OUT)
    service = Service(_settings(data_dir), base_model=spec["base_model"], on_trouble=trouble)
    look.heading("Luthier demo", "a dataset, a job, an adapter, on this machine")
    look.plain("")
    with _sigterm_as_interrupt(), service, _tended(service):
        adapter_id, answers = _tune_and_ask(service, folder, spec, questions, check=check)
    look.note(look.TICK, "green", "The service is stopped; nothing is left running")
    _go_on(service.settings.data_dir, adapter_id, questions[0])
    if check:
        _require_learned(answers)


def _tune_and_ask(
    service: "Service",
    folder: Path,
    spec: dict[str, Any],
    questions: list[Question],
    *,
    check: bool,
) -> tuple[str, list[Answered]]:
    from cli.client import Client
    from cli.dataset import send, uploaded
    from cli.follow import follow
    from cli.home import key_path
    from cli.job import post, succeeded

    with Client(service.url, key_path(service.settings.data_dir).read_text().strip()) as client:
        dataset = send(client, folder / _TRAIN)
        uploaded(dataset)
        job = follow(client, post(client, spec | {"dataset": dataset["id"]})["id"])
        succeeded(job)
        asked = questions if check else questions[:SHOWN]
        answers = _ask(client, spec["base_model"], job["adapter_id"], asked)
    _compare(answers)
    return job["adapter_id"], answers


def _folder(given: Path | None) -> Path:
    from jobs.settings import REPO

    folder = given or REPO / "examples" / "data"
    for name in (_TRAIN, _HELD_OUT, _JOB):
        if not (folder / name).is_file():
            raise CommandFailed(f"{folder / name} is missing; run the demo from a checkout.")
    return folder


def _questions(file: Path) -> list[Question]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        Question([m for m in row["messages"] if m["role"] != "assistant"], row["expected"])
        for row in rows
    ]


def _settings(data_dir: Path | None) -> Any:
    """A service of its own: free ports, and nothing of an operator's databases or buckets."""
    settings = read_settings(data_dir=data_dir)
    own = dict.fromkeys(("database_url", "broker_url", "storage_url", "inference_url"), "")
    folder = settings.data_dir if data_dir else settings.data_dir / "demo"
    return settings.model_copy(
        update={
            **own,
            "generator": "luthier",
            "data_dir": folder,
            "port": 0,
            "inference_port": 0,
            "host": "127.0.0.1",
        }
    )


@contextmanager
def _tended(service: "Service") -> Iterator[None]:
    """The service, up and looked after in a thread."""
    from cli import look

    stop = threading.Event()
    broken: list[CommandFailed] = []

    def tend() -> None:
        try:
            service.tend(stop)
        except CommandFailed as failure:
            broken.append(failure)
            _thread.interrupt_main()  # it waits for a service that will not come back

    tender = threading.Thread(target=tend, name="tender")
    with look.waiting("starting the service"):
        for _ in service.starting():
            pass
    look.note(look.TICK, "green", f"The service is up at {service.url}")
    tender.start()
    try:
        yield
    finally:
        stop.set()
        tender.join()
        if broken:
            raise broken[0]


def _ask(
    client: "Client", base_model: str, adapter_id: str, questions: list[Question]
) -> list[Answered]:
    """Every question to both, greedily, several at once."""
    from cli import look

    def answer(question: Question, **who: str) -> str:
        body = {"messages": question.messages, "max_tokens": MAX_TOKENS, "temperature": 0}
        return str(client.post("/generate", body | who)["text"])

    def both(question: Question) -> Answered:
        base = answer(question, base_model=base_model)
        return Answered(question, base, answer(question, adapter_id=adapter_id))

    with look.waiting("asking both"), ThreadPoolExecutor(_TOGETHER) as pool:
        return list(pool.map(both, questions))


def _compare(answers: list[Answered]) -> None:
    from rich.text import Text

    from cli import look

    table = look.side_by_side("held-out prompt", "base", "adapter")
    for one in answers[:SHOWN]:
        mark, style = (look.TICK, "green") if one.adapter_right else (look.CROSS, "red")
        table.add_row(
            one.question.text,
            Text(one.base.strip(), "dim"),
            Text(f"{mark} {one.adapter.strip()}", style),
        )
    look.plain("")
    look.out.print(table)
    right = sum(one.adapter_right for one in answers)
    before = sum(one.base_right for one in answers)
    count = len(answers)
    look.plain("")
    look.fact("Right", f"{right} of {count} by the adapter, {before} of {count} by the base")


def _require_learned(answers: list[Answered]) -> None:
    right = sum(one.adapter_right for one in answers) / len(answers)
    before = sum(one.base_right for one in answers) / len(answers)
    if right < ADAPTER_BAR or before > BASE_BAR:
        raise CommandFailed(
            f"The adapter answered {right:.0%} as taught (at least {ADAPTER_BAR:.0%} expected), "
            f"the base {before:.0%} (at most {BASE_BAR:.0%} expected)."
        )


def _go_on(data_dir: Path, adapter_id: str, question: Question) -> None:
    import shlex

    from cli import look
    from cli.serve import near

    folder = near(data_dir)
    look.heading("Go on")
    look.commands(
        [
            f"luthier serve --data-dir {folder}",
            f"export LUTHIER_DATA_DIR={folder}      # in another terminal",
            f"luthier generate --adapter {adapter_id} {shlex.quote(question.text)}",
        ]
    )
    look.plain("")


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: through every `with`."""
    asked = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
