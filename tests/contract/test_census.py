"""What the jobs table tells Prometheus, over both databases; and which request a job comes from."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import CollectorRegistry
from structlog.contextvars import bound_contextvars

from engine.spec import DpoMethod
from jobs.census import Census
from jobs.model import JobError
from jobs.store import Store
from tests.contract.test_jobs_store import dataset_of, expire, spec_of, submit, tenant_of
from tests.contract.test_pipelines import post, succeed

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, store_url: Callable[[str], str]) -> Iterator[Store]:
    made = Store(store_url(request.param))
    yield made
    made.close()


class Shown:
    """What a scrape of a fresh census finds."""

    def __init__(self, store: Store, **classes: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(Census(store.database, "default", classes))

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(f"luthier_{name}", labels)

    def jobs(self, status: str, method: str = "sft", tenant_class: str = "standard") -> float:
        labels = {"method": method, "tenant_class": tenant_class, "queue": "default"}
        return self("jobs", status=status, **labels) or 0.0


def test_jobs_are_counted_by_status_method_and_tenant_class(store: Store) -> None:
    ours, theirs = tenant_of(store), tenant_of(store, "theirs")
    for _ in range(2):
        submit(store, ours)
    submit(store, theirs)
    pairs = spec_of(dataset_of(store, theirs)).model_copy(update={"method": DpoMethod()})
    store.jobs.submit(theirs, pairs, base_revision="r")
    store.jobs.cancel(ours, submit(store, ours))

    shown = Shown(store, theirs="gold")

    assert shown.jobs("queued") == 2
    assert shown.jobs("queued", tenant_class="gold") == 1
    assert shown.jobs("queued", "dpo", "gold") == 1
    assert shown.jobs("cancelled") == 1
    assert shown("queue_jobs", queue="default") == 4
    assert shown("database_up") == 1


def test_a_job_waits_since_it_was_queued_last(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.jobs.pause(tenant_id, job_id)
    time.sleep(0.5)
    assert Shown(store)("queue_oldest_seconds", queue="default") == 0
    resumed_at = time.monotonic()
    store.jobs.resume(tenant_id, job_id)
    time.sleep(0.3)
    waited = Shown(store)("queue_oldest_seconds", queue="default")
    assert waited is not None
    assert 0.25 < waited < time.monotonic() - resumed_at + 0.1


def test_a_queue_that_is_empty_is_shown_as_empty(store: Store) -> None:
    shown = Shown(store)
    assert shown("queue_jobs", queue="default") == 0
    assert shown("queue_oldest_seconds", queue="default") == 0


def test_a_lease_that_nobody_takes_back_is_overdue(store: Store) -> None:
    job_id = submit(store, tenant_of(store))
    claim = store.leases.claim("w", "default")
    assert claim is not None
    assert Shown(store)("leases_overdue") == 0
    expire(store, job_id)
    assert Shown(store)("leases_overdue") == 1
    store.leases.sweep()
    assert Shown(store)("leases_overdue") == 0


def test_several_who_scrape_share_one_look(store: Store) -> None:
    tenant_id, shown = tenant_of(store), Shown(store)
    assert shown.jobs("queued") == 0
    submit(store, tenant_id)
    assert shown.jobs("queued") == 0
    assert Shown(store).jobs("queued") == 1


def test_a_database_that_is_away_is_down_and_shows_no_old_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    store = Store(f"sqlite:///{folder / 'jobs.db'}")
    store.close()
    (folder).rmdir()
    shown = Shown(store)
    assert shown("database_up") == 0
    assert shown("queue_jobs", queue="default") is None


def test_a_job_keeps_the_request_and_the_trace_that_it_comes_from(store: Store) -> None:
    tenant_id = tenant_of(store)
    context = SpanContext(TRACE, 0x00F067AA0BA902B7, is_remote=False, trace_flags=TraceFlags(1))
    with (
        bound_contextvars(request_id="req_0123456789"),
        trace.use_span(NonRecordingSpan(context)),
    ):
        job_id = submit(store, tenant_id)
    claim = store.leases.claim("w", "default")
    assert claim is not None
    assert claim.job.id == job_id
    assert claim.origin.request_id == "req_0123456789"
    assert claim.origin.traceparent == f"00-{TRACE:032x}-00f067aa0ba902b7-01"
    store.leases.fail(job_id, 1, JobError(code="x", message="x"))

    submit(store, tenant_id)
    claim = store.leases.claim("w", "default")
    assert claim is not None
    assert claim.origin.model_dump() == {"request_id": None, "traceparent": None}


def test_a_stage_that_starts_later_comes_from_its_pipelines_request(store: Store) -> None:
    tenant_id = tenant_of(store)
    with bound_contextvars(request_id="req_pipeline"):
        pipeline = post(store, tenant_id, first=None, second="@first")
    first = pipeline.stages[0].job_id
    assert first is not None
    succeed(store, tenant_id, first)
    with bound_contextvars(request_id="req_somebodys"):
        store.pipelines.move(pipeline.id)
    claim = store.leases.claim("w", "default")
    assert claim is not None
    assert claim.job.stage == "second"
    assert claim.origin.request_id == "req_pipeline"
