"""What a worker counts of its attempts, with a scripted trainer, and the spans that they make."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from engine.plan import Failed, Finished, Logged, Report, Started, Stepped
from jobs import tracing
from jobs.instruments import Instruments
from jobs.runner import Runner
from jobs.sweep import Sweep
from jobs.tables import jobs
from storage.memory import MemoryStore
from storage.objects import StorageUnavailable
from tests.jobs.test_runner import Script, Scripted, Step, finish, runner_of, save
from tests.jobs.test_sweep import BrokenOnce
from tests.workers import House, conversations


class Figures:
    """The numbers of a runner whose trainer follows a script."""

    def __init__(self, house: House, *scripts: list[Step]) -> None:
        self.registry = CollectorRegistry()
        self.instruments = Instruments(self.registry)
        _, plain = runner_of(house, Scripted(*scripts))
        shop = replace(plain, instruments=self.instruments)
        root = house.settings.data_dir / "work"
        settings = house.settings
        self.runner = Runner(
            shop,
            owner="test",
            work_root=root,
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
        )

    def __call__(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"luthier_{name}", labels) or 0.0


def begin(resumed_step: int = 0) -> Step:
    return lambda script: Started(
        total_steps=9,
        rows=3,
        trained_tokens=33,
        trainable_parameters=1,
        resumed_step=resumed_step,
    )


def step(number: int, tokens: float) -> Step:
    return lambda script: Stepped(
        step=number,
        total_steps=9,
        epoch=0.1,
        metrics={"loss": 1.0, "num_tokens": tokens},
        seconds=0.2,
    )


def finish_of(peak_memory_bytes: float) -> Step:
    def end(script: Script) -> Report:
        last = finish(script)
        assert isinstance(last, Finished)
        return last.model_copy(update={"metrics": {"peak_memory_bytes": peak_memory_bytes}})

    return end


def fail(script: Script) -> Report:
    return Failed(code="diverged", message="The loss of 'a client's row' is nan.")


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    made = make_house()
    made.submit(made.add_dataset(conversations(3)))
    return made


def test_an_attempt_that_succeeds_is_counted_with_its_steps_and_tokens(house: House) -> None:
    figures = Figures(house, [begin(), step(1, 10), save(1), step(2, 25), finish_of(123.0)])
    figures.runner.run_next("default")

    assert figures("attempts_started_total", method="sft") == 1
    assert figures("attempts_ended_total", method="sft", outcome="succeeded") == 1
    assert figures("attempts_running") == 0
    assert figures("attempt_first_step_seconds_count", method="sft") == 1
    assert figures("training_step_seconds_count", method="sft") == 2
    assert figures("training_step_seconds_sum", method="sft") == pytest.approx(0.4)
    assert figures("training_tokens_total", method="sft") == 25
    assert figures("trainer_peak_memory_bytes", method="sft") == 123
    assert figures("publishes_total", outcome="ok") == 1
    assert figures("checkpoints_total", outcome="ok") == 1


def test_a_resumed_attempt_counts_no_tokens_that_were_read_before_it(house: House) -> None:
    figures = Figures(house, [begin(resumed_step=5), step(6, 100), step(7, 115), finish])
    figures.runner.run_next("default")
    assert figures("training_tokens_total", method="sft") == 15


def test_an_attempt_that_fails_is_counted_by_its_code(house: House) -> None:
    figures = Figures(house, [begin(), step(1, 1), fail])
    figures.runner.run_next("default")
    assert figures("attempts_ended_total", method="sft", outcome="diverged") == 1
    assert figures("publishes_total", outcome="ok") == 0
    assert figures("attempts_running") == 0


def test_a_result_that_cannot_be_stored_is_a_failed_publish(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(MemoryStore):
        """Keeps what is there and takes no more."""

        def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
            raise StorageUnavailable("full")

        put_file = put  # type: ignore[assignment]  # it fails alike

    full = Full()
    for info in house.objects.list(""):
        MemoryStore.put(full, info.key, house.objects.get(info.key))
    house.objects = full
    figures = Figures(house, [begin(), step(1, 1), finish])
    figures.runner.run_next("default")
    assert figures("publishes_total", outcome="failed") == 1
    assert figures("attempts_ended_total", method="sft", outcome="storage_error") == 1


def test_a_lease_that_the_sweep_took_is_counted_on_both_sides(house: House) -> None:
    def lose(script: Script) -> Report | None:
        while not figures("leases_expired_total", outcome="requeued"):
            with house.store.database.write() as connection:
                connection.execute(jobs.update().values(lease_expires_at=1.0))
            sweep.expire()
        return None

    def idle(script: Script) -> Report | None:
        time.sleep(0.02)
        return None

    figures = Figures(house, [begin(), lose, *[idle] * 200])
    instruments = figures.instruments
    sweep = Sweep(
        house.store, BrokenOnce(), "default", expire_s=1.0, wake_s=1.0, instruments=instruments
    )
    figures.runner.run_next("default")
    assert figures("leases_lost_total") == 1
    assert figures("leases_expired_total", outcome="requeued") == 1
    assert figures("attempts_ended_total", method="sft", outcome="lease_lost") == 1


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing.trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def test_a_failed_attempt_marks_its_spans_with_the_code_and_with_no_text(
    house: House, spans: InMemorySpanExporter
) -> None:
    Figures(house, [begin(), step(1, 1), fail]).runner.run_next("default")
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert set(by_name) == {"attempt", "prepare", "train"}
    for name in ("attempt", "train"):
        assert by_name[name].status.status_code is StatusCode.ERROR
        assert (by_name[name].attributes or {})["error.type"] == "diverged"
    assert "row" not in "".join(span.to_json() for span in by_name.values())


def test_what_the_trainer_logs_is_logged_with_the_attempts_ids(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(script: Script) -> Report:
        return Logged(event="trainer.started", fields={"pid": 7})

    Figures(house, [say, begin(), step(1, 1), finish]).runner.run_next("default")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "trainer.started" in line]
    assert "attempt=1" in line
    assert "job_id=job_" in line
    assert "pid=7" in line
