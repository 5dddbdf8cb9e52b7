"""One suite over both databases: a pipeline's stages start once each, in order, or say why not."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from engine.graders import asking
from engine.spec import PpoMethod
from jobs.errors import Conflict, IdempotencyReused, InUse, NotFound, QuotaExceeded
from jobs.idempotency import Idempotency
from jobs.model import Adapter, JobError, Status, new_id
from jobs.quotas import Quotas
from jobs.stages import Pipeline, PipelineSpec, PlannedStage, StageState
from jobs.store import Store
from jobs.tables import adapters, idempotency_keys, jobs
from tests.contract.conftest import MakeStore
from tests.contract.test_jobs_store import adapter_of, dataset_of, expire, spec_of, tenant_of

DIVERGED = JobError(code="diverged", message="loss is nan")


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def post(
    store: Store,
    tenant_id: str,
    key: Idempotency | None = None,
    *,
    scored: dict[str, str] | None = None,
    **inits: str | None,
) -> Pipeline:
    """Stages by name, each with what it goes on with; `scored` names reward models beside it."""
    rows = dataset_of(store, tenant_id)
    specs = {name: spec_of(rows).model_copy(update={"init": i}) for name, i in inits.items()}
    for name, source in (scored or {}).items():
        method = PpoMethod(reward_model=source)
        specs[name] = specs[name].model_copy(update={"method": method})
    planned = [PlannedStage(name, spec, "r") for name, spec in specs.items()]
    spec = PipelineSpec(stages=specs)
    return store.pipelines.submit(tenant_id, spec, planned, idempotency=key).pipeline


def succeed(store: Store, tenant_id: str, job_id: str) -> Adapter:
    """Run a queued job, and leave its pipeline as it is."""
    job = run(store, tenant_id, job_id)
    adapter = adapter_of(tenant_id, job_id)
    store.leases.succeed(job_id, job, adapter, 1.0)
    return adapter


def run(store: Store, tenant_id: str, job_id: str) -> int:
    """Claim until this job is ours; its attempt. Others that were claimed are handed back."""
    others = []
    while claim := store.leases.claim("w", "default"):
        if claim.job.id == job_id:
            for other in others:
                store.leases.release(other.id, other.attempt)
            return claim.job.attempt
        others.append(claim.job)
    raise AssertionError(f"{job_id} is not queued")


def sweep(store: Store) -> int:
    return sum(map(store.pipelines.move, store.pipelines.unmoved()))


def states(store: Store, pipeline: Pipeline) -> dict[str, str]:
    found = store.pipelines.get(pipeline.tenant_id, pipeline.id)
    return {stage.name: str(stage.state) for stage in found.stages}


def job_of(store: Store, pipeline: Pipeline, stage: str) -> str:
    found = store.pipelines.get(pipeline.tenant_id, pipeline.id)
    job_id = next(each.job_id for each in found.stages if each.name == stage)
    assert job_id is not None
    return job_id


def status(store: Store, pipeline: Pipeline) -> Status:
    return store.pipelines.get(pipeline.tenant_id, pipeline.id).status


def test_a_database_from_before_pipelines_keeps_what_it_has(url: str) -> None:
    store = Store(url)
    alembic = store.database._alembic
    with store.database.write() as connection:
        command.upgrade(alembic(connection), "0001")
    job = {"id": "job_1", "tenant_id": "tn_1", "answer": "{}", "at": 1.0}
    kept = sa.text("insert into idempotency_keys values (:tenant_id, 'k', 'b', :id, :answer, :at)")
    with store.database.write() as connection:
        connection.execute(kept, job)
    store.database.migrate()
    with store.database.read() as connection:
        assert connection.scalars(sa.select(idempotency_keys.c.object_id)).all() == ["job_1"]
    with store.database.write() as connection:
        command.downgrade(alembic(connection), "0001")
    store.database.migrate()
    assert store.database.current()
    store.close()


def test_stages_start_when_what_they_need_has_succeeded(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, sft=None, rm="@sft", ppo="@sft", scored={"ppo": "@rm"})
    assert (made.status, [stage.needs for stage in made.stages]) == (
        Status.QUEUED,
        [(), ("sft",), ("sft", "rm")],
    )
    assert states(store, made) == {"sft": "queued", "rm": "waiting", "ppo": "waiting"}

    sft = succeed(store, tenant_id, job_of(store, made, "sft"))
    assert status(store, made) is Status.RUNNING
    assert sweep(store) == 1
    assert states(store, made) == {"sft": "succeeded", "rm": "queued", "ppo": "waiting"}
    rm = store.jobs.get(tenant_id, job_of(store, made, "rm"))
    assert (rm.pipeline_id, rm.stage, rm.spec.init) == (made.id, "rm", sft.id)

    succeed(store, tenant_id, rm.id)
    assert sweep(store) == 1
    ppo = store.jobs.get(tenant_id, job_of(store, made, "ppo"))
    reward = store.jobs.get(tenant_id, rm.id).adapter_id
    assert (ppo.spec.init, ppo.spec.method) == (sft.id, PpoMethod(reward_model=reward))
    last = succeed(store, tenant_id, ppo.id)
    assert sweep(store) == 0
    done = store.pipelines.get(tenant_id, made.id)
    assert (done.status, done.stages[2].adapter_id) == (Status.SUCCEEDED, last.id)
    assert done.finished_at == max(stage.finished_at or 0.0 for stage in done.stages)
    assert store.pipelines.unmoved() == []


def test_eight_that_move_a_pipeline_on_at_once_start_each_stage_once(
    make_store: MakeStore,
) -> None:
    stores = [make_store() for _ in range(8)]
    store, tenant_id = stores[0], tenant_of(stores[0])
    leaves = {f"leaf{n}": "@root" for n in range(6)}
    made = [post(store, tenant_id, root=None, **leaves) for _ in range(3)]
    barrier = threading.Barrier(8)

    def move(number: int) -> int:
        """Two end their jobs and move on as workers do; the others sweep."""
        barrier.wait()
        started = 0
        if number < len(made):
            root = made[number].stages[0].job_id
            assert root is not None
            with stores[number].database.read() as connection:
                query = sa.select(jobs.c.attempt).where(jobs.c.id == root)
                attempt = connection.scalar(query) or 0
            stores[number].leases.succeed(root, attempt, adapter_of(tenant_id, root), 1.0)
            started += stores[number].pipelines.move(made[number].id)
        for _ in range(10):
            started += sweep(stores[number])
            started += sum(stores[number].pipelines.move(pipeline.id) for pipeline in made)
        return started

    for pipeline in made:
        run(store, tenant_id, pipeline.stages[0].job_id or "")
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(move, range(8))) == 18
    for pipeline in made:
        assert set(states(store, pipeline).values()) == {"succeeded", "queued"}
    with store.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(jobs)) == 21


def test_the_table_takes_one_job_a_stage(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None, b=None)
    second = jobs.update().where(jobs.c.id == job_of(store, made, "b")).values(stage="a")
    with pytest.raises(sa.exc.IntegrityError), store.database.write() as connection:
        connection.execute(second)


def test_a_failed_stage_stops_what_needs_it_with_the_cause_and_nothing_else(
    store: Store,
) -> None:
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None, b="@a", c="@b", other=None, last="@other")
    job_id = job_of(store, made, "a")
    store.leases.fail(job_id, run(store, tenant_id, job_id), DIVERGED)
    sweep(store)

    assert states(store, made) == {
        "a": "failed",
        "b": "skipped",
        "c": "skipped",
        "other": "queued",
        "last": "waiting",
    }
    found = store.pipelines.get(tenant_id, made.id)
    cause = JobError(
        code="stage_failed",
        message="Stage 'a' failed (diverged): loss is nan",
        param="stages.a",
    )
    assert [stage.error for stage in found.stages] == [DIVERGED, cause, cause, None, None]
    assert found.status is Status.RUNNING
    for stage in ("other", "last"):
        succeed(store, tenant_id, job_of(store, made, stage))
        sweep(store)
    assert status(store, made) is Status.FAILED


@pytest.mark.parametrize("end", ["cancel", "cancel_running", "sweep"])
def test_a_stage_that_ends_in_any_other_way_stops_what_needs_it_too(
    make_store: MakeStore, end: str
) -> None:
    store = make_store(max_attempts=1)
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None, b="@a")
    job_id = job_of(store, made, "a")
    if end == "cancel":
        store.jobs.cancel(tenant_id, job_id)
    else:
        attempt = run(store, tenant_id, job_id)
        if end == "sweep":
            expire(store, job_id)
            assert store.leases.sweep().failed == (job_id,)
        else:
            store.jobs.cancel(tenant_id, job_id)
            store.leases.cancelled(job_id, attempt)
    sweep(store)
    ended = Status.FAILED if end == "sweep" else Status.CANCELLED
    assert states(store, made) == {"a": ended, "b": "skipped"}
    assert status(store, made) is ended


def test_a_paused_stage_shows_as_paused_and_the_pipeline_goes_on(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None, b="@a")
    job_id = job_of(store, made, "a")
    store.jobs.pause(tenant_id, job_id)
    assert sweep(store) == 0
    assert states(store, made) == {"a": "paused", "b": "waiting"}
    assert status(store, made) is Status.RUNNING
    store.jobs.resume(tenant_id, job_id)
    succeed(store, tenant_id, job_id)
    assert sweep(store) == 1


def test_a_pipeline_is_cancelled_as_one(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None, b="@a", c="@b", queued=None)
    job_id = job_of(store, made, "a")
    attempt = run(store, tenant_id, job_id)

    asked = store.pipelines.cancel(tenant_id, made.id)

    assert (asked.status, asked.requested) == (Status.RUNNING, "cancel")
    assert states(store, made) == {
        "a": "running",
        "b": "cancelled",
        "c": "cancelled",
        "queued": "cancelled",
    }
    assert store.leases.renew(job_id, attempt) == "cancel"
    store.leases.cancelled(job_id, attempt)
    assert sweep(store) == 0
    done = store.pipelines.get(tenant_id, made.id)
    assert (done.status, done.requested) == (Status.CANCELLED, None)
    assert done.finished_at is not None
    assert store.pipelines.cancel(tenant_id, made.id) == done, "twice is once"


def test_a_pipeline_that_ended_cannot_be_cancelled(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None)
    succeed(store, tenant_id, job_of(store, made, "a"))
    with pytest.raises(Conflict, match="succeeded already"):
        store.pipelines.cancel(tenant_id, made.id)


def test_cancels_and_ends_at_once_leave_no_stage_behind(make_store: MakeStore) -> None:
    stores = [make_store() for _ in range(4)]
    store, tenant_id = stores[0], tenant_of(stores[0])
    for _ in range(8):
        made = post(store, tenant_id, a=None, b="@a", c="@a")
        job_id = job_of(store, made, "a")
        attempt = run(store, tenant_id, job_id)
        barrier = threading.Barrier(4)

        def race(
            number: int,
            made: Pipeline = made,
            job_id: str = job_id,
            attempt: int = attempt,
            barrier: threading.Barrier = barrier,
        ) -> None:
            barrier.wait()
            if number == 0:
                stores[0].pipelines.cancel(tenant_id, made.id)
            elif number == 1:
                stores[1].leases.fail(job_id, attempt, DIVERGED)
            sweep(stores[number])

        with ThreadPoolExecutor(4) as pool:
            try:
                list(pool.map(race, range(4)))
            except Conflict:
                assert status(store, made) is Status.FAILED
        sweep(store)
        assert status(store, made) in (Status.CANCELLED, Status.FAILED)
        assert states(store, made)["a"] == "failed"


def test_one_key_is_one_pipeline_and_one_answer(make_store: MakeStore) -> None:
    stores = [make_store() for _ in range(4)]
    tenant_id = tenant_of(stores[0])
    key = Idempotency("key", "body")
    barrier = threading.Barrier(8)

    def submit(number: int) -> str:
        barrier.wait()
        return post(stores[number % 4], tenant_id, key, a=None, b="@a").model_dump_json()

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(submit, range(8)))
    assert len(answers) == 1
    assert len(stores[0].pipelines.page(tenant_id).data) == 1
    assert len(stores[0].jobs.page(tenant_id).data) == 1
    with pytest.raises(IdempotencyReused):
        post(stores[0], tenant_id, Idempotency("key", "other"), a=None)


def test_what_a_waiting_stage_needs_is_not_deleted(store: Store) -> None:
    tenant_id = tenant_of(store)
    given = store.adapters.add(adapter_of(tenant_id, new_id("job")))
    made = post(store, tenant_id, a=None, slow=None, b="@a", scored={"b": "@slow"})
    literal = post(store, tenant_id, a=None, b="@a", scored={"b": given.id})
    first = succeed(store, tenant_id, job_of(store, made, "a"))
    sweep(store)

    for adapter in (first, given):
        with pytest.raises(InUse, match="Stage 'b'"):
            store.adapters.delete(tenant_id, adapter.id)
    rows = store.pipelines.get(tenant_id, made.id).stages[0].spec.dataset
    for stage in ("slow",):
        succeed(store, tenant_id, job_of(store, made, stage))
    with pytest.raises(InUse):
        store.datasets.delete(tenant_id, rows)
    store.pipelines.cancel(tenant_id, made.id)
    store.pipelines.cancel(tenant_id, literal.id)
    for adapter in (first, given):
        store.adapters.delete(tenant_id, adapter.id)
    store.datasets.delete(tenant_id, rows)


def test_an_input_that_an_operator_removed_fails_its_stage_and_says_so(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None, b="@a", c="@b")
    adapter = succeed(store, tenant_id, job_of(store, made, "a"))
    with store.database.write() as connection:
        connection.execute(adapters.delete().where(adapters.c.id == adapter.id))
    sweep(store)
    assert states(store, made) == {"a": "succeeded", "b": "failed", "c": "skipped"}
    stage = store.pipelines.get(tenant_id, made.id).stages[1]
    assert stage.error is not None
    assert adapter.id in stage.error.message


def test_a_stage_that_waits_keeps_its_room(make_store: MakeStore) -> None:
    store = make_store(quotas=Quotas(max_queued_jobs=3))
    tenant_id = tenant_of(store)
    made = post(store, tenant_id, a=None, b="@a", c="@b")
    with pytest.raises(QuotaExceeded):
        post(store, tenant_id, a=None)
    with pytest.raises(QuotaExceeded):
        store.jobs.submit(tenant_id, spec_of(dataset_of(store, tenant_id)), base_revision="r")
    succeed(store, tenant_id, job_of(store, made, "a"))
    post(store, tenant_id, late=None)
    assert sweep(store) == 1, "though others came in the meantime"


def test_foreign_pipelines_are_as_unknown_as_unknown_ones(store: Store) -> None:
    ours, theirs = tenant_of(store, "ours"), tenant_of(store, "theirs")
    made = post(store, ours, a=None)
    for call in (
        lambda: store.pipelines.get(theirs, made.id),
        lambda: store.pipelines.cancel(theirs, made.id),
        lambda: store.pipelines.page(theirs, after=made.id),
    ):
        with pytest.raises(NotFound):
            call()
    assert store.pipelines.page(theirs).data == []
    given = store.adapters.add(adapter_of(ours, new_id("job")))
    with pytest.raises(NotFound):
        post(store, theirs, a=given.id)
    assert store.pipelines.page(theirs).data == []
    assert store.jobs.page(theirs).data == [], "all or nothing"


def test_pages_of_pipelines_have_their_stages(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = [post(store, tenant_id, a=None, b="@a") for _ in range(3)]
    page = store.pipelines.page(tenant_id, limit=2)
    assert page.has_more
    assert page.data == [made[2], made[1]]
    assert store.pipelines.page(tenant_id, after=made[1].id).data == [made[0]]
    assert page.data[0].stages[1].state is StageState.WAITING


def test_models_deep_in_a_grader_come_from_stages_and_are_kept(store: Store) -> None:
    tenant_id = tenant_of(store)
    kept = adapter_of(tenant_id, "job_before")
    store.adapters.add(kept)
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    names = {"a" * 64: "@rm", "b" * 64: kept.id}
    deep: dict[str, Any] = {
        name: {"type": "score_model", "model": model, "input": turns}
        for name, model in names.items()
    }
    for _ in range(3):
        parts = {"c" * 64: {"type": "length", "maximum": 1}} | deep
        deep = {"d" * 64: {"type": "multi", "graders": parts, "weights": dict.fromkeys(parts, 1.0)}}
    (grader,) = deep.values()
    rows = dataset_of(store, tenant_id)
    method = PpoMethod(grader=grader)
    specs = {"rm": spec_of(rows), "ppo": spec_of(rows).model_copy(update={"method": method})}
    planned = [PlannedStage(name, spec, "r") for name, spec in specs.items()]
    pipeline = store.pipelines.submit(tenant_id, PipelineSpec(stages=specs), planned).pipeline

    made = succeed(store, tenant_id, job_of(store, pipeline, "rm"))
    sweep(store)
    job = store.jobs.get(tenant_id, job_of(store, pipeline, "ppo"))
    models = [part.model for _, part in asking(getattr(job.spec.method, "grader", None))]
    assert models == [made.id, kept.id]
    for adapter in (made, kept):
        with pytest.raises(InUse):
            store.adapters.delete(tenant_id, adapter.id)
