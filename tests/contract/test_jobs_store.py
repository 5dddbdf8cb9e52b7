"""One suite over both databases: what the jobs table promises to clients and workers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from engine.estimate.model import Actual, Estimate
from engine.merging import MergeMethod, WeightedAdapter
from engine.spec import FullPeft, LoraPeft, SftMethod
from jobs.board import Idempotency
from jobs.errors import (
    Conflict,
    IdempotencyReused,
    InUse,
    LeaseLost,
    NotFound,
    QuotaExceeded,
    StoreUnavailable,
)
from jobs.model import (
    Adapter,
    Checkpoint,
    Dataset,
    JobError,
    JobSpec,
    MergeSpec,
    NewEvent,
    Progress,
    Status,
    new_id,
)
from jobs.quotas import Quotas
from jobs.store import Store
from jobs.tables import jobs, metadata
from tests.contract.conftest import MakeStore


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def tenant_of(store: Store, name: str = "ours") -> str:
    return store.tenants.create(name).id


def dataset_of(store: Store, tenant_id: str) -> str:
    dataset = Dataset(
        id=new_id("ds"),
        tenant_id=tenant_id,
        name="rows",
        format="jsonl",
        row_type="conversation",
        rows=3,
        size_bytes=30,
        sha256="0" * 64,
        duplicates=0,
        warnings=("few",),
        created_at=0.0,
    )
    return store.datasets.add(dataset).id


def spec_of(dataset_id: str) -> JobSpec:
    return JobSpec(base_model="tiny", dataset=dataset_id, method=SftMethod())


def submit(store: Store, tenant_id: str, *, key: str | None = None, body: str = "b") -> str:
    idempotency = Idempotency(key, body) if key else None
    spec = spec_of(dataset_of(store, tenant_id))
    return store.jobs.submit(tenant_id, spec, base_revision="r", idempotency=idempotency).job.id


def adapter_of(tenant_id: str, job_id: str) -> Adapter:
    return Adapter(
        id=new_id("ad"),
        tenant_id=tenant_id,
        name="a",
        kind="lora",
        base_model="tiny",
        job_id=job_id,
        size_bytes=1,
        manifest={"format": 1},
        created_at=0.0,
    )


def expire(store: Store, job_id: str) -> None:
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(lease_expires_at=1.0))


def test_migrations_make_the_tables_that_the_code_names(store: Store) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert store.database.current()


def test_migrating_from_several_processes_at_once_is_migrating_once(url: str) -> None:
    stores = [Store(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda store: store.database.migrate(), stores))
    assert all(store.database.current() for store in stores)
    for store in stores:
        store.close()


def test_a_job_goes_from_queued_to_succeeded_with_its_adapter(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    claim = store.leases.claim("worker", "default")
    assert claim is not None
    assert (claim.job.id, claim.job.status, claim.job.attempt) == (job_id, Status.RUNNING, 1)

    step = NewEvent(type="metrics", message="step 1", data={"step": 1, "loss": 2.0})
    store.leases.record(job_id, 1, [step], Progress(step=1, loss=2.0), first_step=True)
    adapter = adapter_of(tenant_id, job_id)
    store.leases.succeed(job_id, 1, adapter, training_s=1.5)

    job = store.jobs.get(tenant_id, job_id)
    assert (job.status, job.adapter_id, job.progress.step) == (Status.SUCCEEDED, adapter.id, 1)
    assert job.timings.first_step_s is not None
    assert job.timings.training_s == 1.5
    assert store.adapters.get(tenant_id, adapter.id).job_id == job_id
    events, more = store.jobs.events(tenant_id, job_id)
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert [event.data.get("status") for event in events] == [
        "queued",
        "running",
        None,
        "succeeded",
    ]
    assert not more


def test_a_queue_without_jobs_claims_nothing(store: Store) -> None:
    submit(store, tenant_of(store))
    assert store.leases.claim("worker", "other") is None
    assert store.leases.queued("other") == 0
    assert store.leases.queued("default") == 1


def test_eight_workers_claim_every_job_exactly_once(make_store: MakeStore) -> None:
    stores = [make_store() for _ in range(8)]
    tenant_id = tenant_of(stores[0])
    submitted = {submit(stores[0], tenant_id) for _ in range(40)}
    barrier = threading.Barrier(8)

    def work(store: Store) -> list[str]:
        barrier.wait()
        claimed = []
        while claim := store.leases.claim("worker", "default"):
            claimed.append(claim.job.id)
        return claimed

    with ThreadPoolExecutor(8) as pool:
        claimed = [job_id for ids in pool.map(work, stores) for job_id in ids]
    assert len(claimed) == len(submitted)
    assert set(claimed) == submitted


def test_a_tenant_with_one_job_waits_one_slot_behind_a_tenant_with_many(store: Store) -> None:
    many, one = tenant_of(store, "many"), tenant_of(store, "one")
    for _ in range(5):
        submit(store, many)
    single = submit(store, one)
    first, second = (store.leases.claim("w", "default") for _ in range(2))
    assert first is not None
    assert first.job.tenant_id == many
    assert second is not None
    assert second.job.id == single


def test_tenants_take_turns_at_one_worker_too(store: Store) -> None:
    """Nothing runs when a worker that is alone asks again, so counting what runs is not enough."""
    ours = [tenant_of(store, name) for name in ("many", "few")]
    for tenant_id, count in zip(ours, (6, 2), strict=True):
        for _ in range(count):
            submit(store, tenant_id)
    served = []
    for _ in range(8):
        claim = store.leases.claim("w", "default")
        assert claim is not None
        adapter = adapter_of(claim.job.tenant_id, claim.job.id)
        store.leases.succeed(claim.job.id, claim.job.attempt, adapter, training_s=0.1)
        served.append(ours.index(claim.job.tenant_id))
    assert served == [0, 1, 0, 1, 0, 0, 0, 0]


def test_priority_goes_before_fairness_and_age(store: Store) -> None:
    tenant_id = tenant_of(store)
    submit(store, tenant_id)
    spec = spec_of(dataset_of(store, tenant_id))
    urgent = store.jobs.submit(tenant_id, spec, base_revision="r", priority=5).job.id
    claim = store.leases.claim("w", "default")
    assert claim is not None
    assert claim.job.id == urgent


def test_a_worker_that_lost_its_lease_can_write_nothing(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.leases.claim("slow", "default")
    expire(store, job_id)
    assert store.leases.sweep().requeued == (job_id,)
    second = store.leases.claim("fast", "default")
    assert second is not None
    assert second.job.attempt == 2

    before = store.jobs.get(tenant_id, job_id)
    late = [NewEvent(type="message", message="late")]
    checkpoint = Checkpoint(
        id=new_id("ck"), job_id=job_id, attempt=1, step=9, files=(), metrics={}, created_at=0.0
    )
    writes = [
        lambda: store.leases.renew(job_id, 1),
        lambda: store.leases.record(job_id, 1, late),
        lambda: store.leases.add_checkpoint(checkpoint),
        lambda: store.leases.drop_checkpoints(job_id, 1, keep=0),
        lambda: store.leases.succeed(job_id, 1, adapter_of(tenant_id, job_id), 1.0),
        lambda: store.leases.fail(job_id, 1, JobError(code="x", message="x")),
        lambda: store.leases.retry(job_id, 1, JobError(code="x", message="x")),
        lambda: store.leases.cancelled(job_id, 1),
        lambda: store.leases.release(job_id, 1),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert store.jobs.get(tenant_id, job_id) == before
    assert store.adapters.page(tenant_id).data == []
    assert store.jobs.checkpoints(tenant_id, job_id) == []


def test_a_lease_that_is_renewed_is_not_swept(make_store: MakeStore) -> None:
    store = make_store(lease_s=60.0)
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.leases.claim("w", "default")
    for _ in range(4):
        expire(store, job_id)
        assert store.leases.renew(job_id, 1) == "continue"
        assert store.leases.sweep().requeued == ()
    expire(store, job_id)
    assert store.leases.sweep().requeued == (job_id,)


def test_a_lease_lasts_as_long_as_it_says(make_store: MakeStore) -> None:
    store = make_store(lease_s=0.3)
    job_id = submit(store, tenant_of(store))
    store.leases.claim("w", "default")
    store.leases.renew(job_id, 1)
    time.sleep(0.4)
    assert store.leases.sweep().requeued == (job_id,)


def test_a_job_that_keeps_losing_its_worker_ends(make_store: MakeStore) -> None:
    store = make_store(max_attempts=3)
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    for _ in range(3):
        assert store.leases.claim("w", "default") is not None
        expire(store, job_id)
        store.leases.sweep()
    job = store.jobs.get(tenant_id, job_id)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "3 times" in job.error.message


def test_a_released_job_is_not_charged_an_attempt(make_store: MakeStore) -> None:
    store = make_store(max_attempts=1)
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    for attempt in (1, 2, 3):
        store.leases.claim("w", "default")
        store.leases.release(job_id, attempt)
    assert store.jobs.get(tenant_id, job_id).status is Status.QUEUED


@pytest.mark.parametrize("lose", ["release", "retry", "sweep"])
def test_a_job_is_let_go_of_as_its_client_has_asked(store: Store, lose: str) -> None:
    tenant_id = tenant_of(store)

    def let_go(job_id: str) -> Status:
        if lose == "release":
            assert store.leases.release(job_id, 1) == store.jobs.get(tenant_id, job_id).status
        elif lose == "retry":
            store.leases.retry(job_id, 1, JobError(code="storage_error", message="away"))
        else:
            expire(store, job_id)
            store.leases.sweep()
        return store.jobs.get(tenant_id, job_id).status

    ids = [submit(store, tenant_id) for _ in range(4)]
    for _ in ids:
        store.leases.claim("w", "default")
    plain, paused, cancelled, both = ids
    for job_id in (paused, both):
        store.jobs.pause(tenant_id, job_id)
    for job_id in (cancelled, both):
        store.jobs.cancel(tenant_id, job_id)
    ends = [let_go(job_id) for job_id in (plain, paused, cancelled, both)]
    assert ends == [Status.QUEUED, Status.PAUSED, Status.CANCELLED, Status.CANCELLED]


def test_what_was_collected_for_long_is_written_at_once(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.leases.claim("w", "default")
    store.leases.record(
        job_id,
        1,
        [NewEvent(type="metrics", message=str(n), data={"step": n}) for n in range(10_000)],
    )
    found, more = store.jobs.events(tenant_id, job_id, after=2, limit=10_000)
    assert not more
    assert [event.seq for event in found] == list(range(3, 10_003))
    assert [event.message for event in found] == [str(n) for n in range(10_000)]


def test_a_checkpoint_that_is_added_again_counts_once(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.leases.claim("w", "default")
    values = {"id": new_id("ck"), "job_id": job_id, "attempt": 1, "step": 1, "files": ()}
    checkpoint = Checkpoint.model_validate(values | {"metrics": {}, "created_at": 0.0})
    store.leases.add_checkpoint(checkpoint)
    store.leases.add_checkpoint(checkpoint)
    assert len(store.jobs.checkpoints(tenant_id, job_id)) == 1


def test_a_new_attempt_gets_the_newest_checkpoint(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.leases.claim("w", "default")
    for step in (10, 20, 30):
        store.leases.add_checkpoint(
            Checkpoint(
                id=new_id("ck"),
                job_id=job_id,
                attempt=1,
                step=step,
                files=(),
                metrics={"loss": 1.0},
                created_at=0.0,
            )
        )
    dropped = store.leases.drop_checkpoints(job_id, 1, keep=2)
    assert [checkpoint.step for checkpoint in dropped] == [10]
    store.leases.release(job_id, 1)
    claim = store.leases.claim("w", "default")
    assert claim is not None
    assert claim.checkpoint is not None
    assert claim.checkpoint.step == 30


def test_cancel_ends_a_queued_job_at_once_and_tells_a_running_one(store: Store) -> None:
    tenant_id = tenant_of(store)
    queued, running = submit(store, tenant_id), submit(store, tenant_id)
    assert store.jobs.cancel(tenant_id, queued).status is Status.CANCELLED
    assert store.jobs.cancel(tenant_id, queued).status is Status.CANCELLED
    store.leases.claim("w", "default")
    assert store.jobs.cancel(tenant_id, running).requested == "cancel"
    assert store.leases.renew(running, 1) == "cancel"
    store.leases.cancelled(running, 1)
    assert store.jobs.get(tenant_id, running).status is Status.CANCELLED


def test_a_cancel_before_publishing_leaves_no_adapter(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.leases.claim("w", "default")
    store.jobs.cancel(tenant_id, job_id)
    with pytest.raises(LeaseLost):
        store.leases.succeed(job_id, 1, adapter_of(tenant_id, job_id), 1.0)
    assert store.jobs.get(tenant_id, job_id).status is Status.CANCELLED
    assert store.adapters.page(tenant_id).data == []


def test_a_job_that_ended_cannot_be_cancelled(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    store.leases.claim("w", "default")
    store.leases.fail(job_id, 1, JobError(code="diverged", message="loss is nan"))
    with pytest.raises(Conflict, match="failed already"):
        store.jobs.cancel(tenant_id, job_id)


def test_pause_and_resume_of_queued_and_running_jobs(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    assert store.jobs.pause(tenant_id, job_id).status is Status.PAUSED
    assert store.leases.claim("w", "default") is None
    assert store.jobs.resume(tenant_id, job_id).status is Status.QUEUED
    store.leases.claim("w", "default")
    store.jobs.pause(tenant_id, job_id)
    assert store.leases.renew(job_id, 1) == "pause"
    store.leases.release(job_id, 1)
    with pytest.raises(Conflict):
        store.jobs.resume(tenant_id, submit(store, tenant_id))


def test_one_idempotency_key_is_one_job_and_one_answer(make_store: MakeStore) -> None:
    stores = [make_store() for _ in range(4)]
    tenant_id = tenant_of(stores[0])
    spec = spec_of(dataset_of(stores[0], tenant_id))
    barrier = threading.Barrier(16)

    def post(number: int) -> str:
        barrier.wait()
        submitted = stores[number % 4].jobs.submit(
            tenant_id, spec, base_revision="r", idempotency=Idempotency("key", "body")
        )
        return submitted.job.model_dump_json()

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(post, range(16)))
    assert len(answers) == 1
    assert len(stores[0].jobs.page(tenant_id).data) == 1


def test_a_replayed_answer_does_not_change_with_the_job(store: Store) -> None:
    tenant_id = tenant_of(store)
    spec = spec_of(dataset_of(store, tenant_id))
    key = Idempotency("key", "body")
    first = store.jobs.submit(tenant_id, spec, base_revision="r", idempotency=key)
    store.leases.claim("w", "default")
    again = store.jobs.submit(tenant_id, spec, base_revision="r", idempotency=key)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job == first.job


def test_a_key_with_another_body_is_refused_and_other_tenants_keys_are_their_own(
    store: Store,
) -> None:
    ours, theirs = tenant_of(store, "ours"), tenant_of(store, "theirs")
    job_id = submit(store, ours, key="key", body="one")
    with pytest.raises(IdempotencyReused):
        submit(store, ours, key="key", body="two")
    assert submit(store, theirs, key="key", body="two") != job_id


def test_foreign_ids_are_as_unknown_as_unknown_ones(store: Store) -> None:
    ours, theirs = tenant_of(store, "ours"), tenant_of(store, "theirs")
    job_id, dataset_id = submit(store, ours), dataset_of(store, ours)
    for call in (
        lambda: store.jobs.get(theirs, job_id),
        lambda: store.jobs.cancel(theirs, job_id),
        lambda: store.jobs.events(theirs, job_id),
        lambda: store.datasets.get(theirs, dataset_id),
        lambda: store.datasets.delete(theirs, dataset_id),
        lambda: store.jobs.submit(theirs, spec_of(dataset_id), base_revision="r"),
        lambda: store.jobs.page(theirs, after=job_id),
    ):
        with pytest.raises(NotFound):
            call()
    assert store.jobs.page(theirs).data == []


def test_a_dataset_that_a_live_job_needs_stays(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    dataset_id = store.jobs.get(tenant_id, job_id).spec.dataset
    with pytest.raises(InUse):
        store.datasets.delete(tenant_id, dataset_id)
    store.jobs.cancel(tenant_id, job_id)
    store.datasets.delete(tenant_id, dataset_id)
    with pytest.raises(NotFound):
        store.datasets.get(tenant_id, dataset_id)


def test_an_adapter_that_a_live_job_starts_from_stays(store: Store) -> None:
    ours, theirs = tenant_of(store, "ours"), tenant_of(store, "theirs")
    adapter = store.adapters.add(adapter_of(ours, new_id("job")))
    spec = spec_of(dataset_of(store, ours)).model_copy(update={"init": adapter.id})
    job_id = store.jobs.submit(ours, spec, base_revision="r").job.id
    foreign = spec_of(dataset_of(store, theirs)).model_copy(update={"init": adapter.id})

    with pytest.raises(NotFound):
        store.jobs.submit(theirs, foreign, base_revision="r")
    with pytest.raises(InUse, match=job_id):
        store.adapters.delete(ours, adapter.id)
    store.jobs.cancel(ours, job_id)
    store.adapters.delete(ours, adapter.id)

    with pytest.raises(NotFound):
        store.jobs.submit(ours, spec, base_revision="r")


def merge_of(*adapters: Adapter) -> MergeSpec:
    named = tuple(WeightedAdapter(id=adapter.id) for adapter in adapters)
    method = MergeMethod(adapters=named, combination_type="cat")
    return MergeSpec(base_model="tiny", method=method, peft=LoraPeft(r=2))


def test_a_merge_has_no_dataset_and_keeps_its_adapters(store: Store) -> None:
    ours, theirs = tenant_of(store, "ours"), tenant_of(store, "theirs")
    pair = [store.adapters.add(adapter_of(ours, new_id("job"))) for _ in range(2)]
    spec, once = merge_of(*pair), Idempotency("once", "body")
    job = store.jobs.submit(ours, spec, base_revision="r", idempotency=once).job

    assert job.spec == store.jobs.get(ours, job.id).spec == spec
    again = store.jobs.submit(ours, spec, base_revision="r", idempotency=once)
    assert (again.replayed, again.job) == (True, job)
    with pytest.raises(NotFound):
        store.jobs.submit(theirs, spec, base_revision="r")
    for adapter in pair:
        with pytest.raises(InUse, match=job.id):
            store.adapters.delete(ours, adapter.id)
    claim = store.leases.claim("me", "default")
    assert claim is not None
    assert (claim.job.spec, claim.datasets, claim.checkpoint) == (spec, {}, None)
    store.leases.succeed(job.id, 1, adapter_of(ours, job.id), 1.0)
    for adapter in pair:
        store.adapters.delete(ours, adapter.id)


def test_jobs_of_before_there_were_merges_are_there_after_migrating(url: str) -> None:
    store = Store(url, pepper="p")
    store.database.migrate()
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id, key="k")
    before = store.jobs.get(tenant_id, job_id)
    with store.database.write() as connection:
        command.downgrade(store.database._alembic(connection), "0002")

    store.database.migrate()

    assert store.jobs.get(tenant_id, job_id) == before
    assert store.database.current()
    store.close()


def test_an_adapter_is_not_deleted_while_jobs_are_posted_that_start_from_it(
    make_store: MakeStore,
) -> None:
    stores = [make_store() for _ in range(4)]
    tenant_id = tenant_of(stores[0])
    for _ in range(5):
        adapter = stores[0].adapters.add(adapter_of(tenant_id, new_id("job")))
        spec = spec_of(dataset_of(stores[0], tenant_id)).model_copy(update={"init": adapter.id})
        barrier = threading.Barrier(4)

        def race(
            number: int,
            adapter: Adapter = adapter,
            spec: JobSpec = spec,
            barrier: threading.Barrier = barrier,
        ) -> bool:
            barrier.wait()
            try:
                if number:
                    stores[number].jobs.submit(tenant_id, spec, base_revision="r")
                else:
                    stores[number].adapters.delete(tenant_id, adapter.id)
            except (NotFound, InUse):
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            deleted, *posted = pool.map(race, range(4))
        assert deleted != any(posted), "either the adapter is gone or jobs have it"


def test_pages_walk_the_whole_list_once_newest_first(store: Store) -> None:
    tenant_id = tenant_of(store)
    made = [dataset_of(store, tenant_id) for _ in range(7)]
    seen: list[str] = []
    after, more = None, True
    while more:
        page = store.datasets.page(tenant_id, after=after, limit=3)
        seen += [dataset.id for dataset in page.data]
        after, more = seen[-1], page.has_more
    assert sorted(seen) == sorted(made)
    created = [store.datasets.get(tenant_id, id).created_at for id in seen]
    assert created == sorted(created, reverse=True)


def test_metrics_of_a_step_that_ran_twice_are_the_later_ones(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    for attempt, loss in ((1, 3.0), (2, 2.0)):
        store.leases.claim("w", "default")
        event = NewEvent(type="metrics", message="s", data={"step": 1, "loss": loss})
        store.leases.record(job_id, attempt, [event])
        store.leases.release(job_id, attempt)
    assert [event.data["loss"] for event in store.jobs.metrics(tenant_id, job_id)] == [2.0]


def test_the_quota_of_live_jobs_is_kept(make_store: MakeStore) -> None:
    store = make_store(quotas=Quotas(max_queued_jobs=2))
    tenant_id = tenant_of(store)
    submit(store, tenant_id)
    submit(store, tenant_id)
    with pytest.raises(QuotaExceeded):
        submit(store, tenant_id)


def test_keys_are_stored_as_hashes_and_revoked_at_once(store: Store) -> None:
    tenant_id = tenant_of(store)
    key, record = store.tenants.issue_key(tenant_id, "laptop")
    caller = store.tenants.authenticate(key)
    assert caller is not None
    assert caller.tenant_id == tenant_id
    assert store.tenants.authenticate(key + "x") is None
    assert store.tenants.authenticate("\ud800") is None
    with store.database.read() as connection:
        for table in metadata.tables.values():
            assert key not in str(connection.execute(sa.select(table)).all())
    store.tenants.revoke_key(tenant_id, record.id)
    assert store.tenants.authenticate(key) is None


def test_a_database_that_does_not_answer_is_said_to_be_unavailable() -> None:
    store = Store("postgresql+psycopg://nobody:x@127.0.0.1:9/none")
    with pytest.raises(StoreUnavailable):
        store.database.ping()
    store.close()


def test_a_postgresql_that_takes_no_writes_is_said_to_be_unavailable(postgres_url: str) -> None:
    store = Store(postgres_url, pepper="p")
    store.database.migrate()
    with store.database.write() as connection:
        name = connection.scalar(sa.text("select current_database()"))
        connection.execute(sa.text(f'alter database "{name}" set default_transaction_read_only=on'))
    store.close()
    with pytest.raises(StoreUnavailable):
        tenant_of(store)
    store.close()


ESTIMATE = Estimate(
    rows=3,
    counted_rows=3,
    trained_rows=3,
    held_out_rows=0,
    left_out=0,
    fully_masked=0,
    truncated=0,
    longest=9,
    tokens=27,
    trained_tokens=9,
    sampled_tokens=0,
    steps=10,
    trainable_parameters=64,
    memory={},
    peak_memory_bytes=1,
    token_passes=100,
    modelled_seconds=4.0,
    seconds=4.0,
    seconds_from="model",
    basis={},
)


def test_an_estimate_stands_beside_what_the_job_took_and_teaches_the_next(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    claim = store.leases.claim("worker", "default")
    assert claim is not None
    store.leases.note_estimate(job_id, 1, ESTIMATE)
    actual = Actual(steps=10, first_step=5, seconds=6.0)  # half of it, after a pause

    store.leases.succeed(job_id, 1, adapter_of(tenant_id, job_id), 6.0, actual)

    job = store.jobs.get(tenant_id, job_id)
    assert (job.estimate, job.actual) == (ESTIMATE, actual)
    (earlier,) = store.throughputs.earlier("default", claim.job.spec)
    assert (earlier.seconds, earlier.modelled_seconds) == (6.0, 2.0)
    assert store.throughputs.earlier("gpu", claim.job.spec) == ()
    other = claim.job.spec.model_copy(update={"peft": FullPeft()})
    assert store.throughputs.earlier("default", other) == ()


def test_an_attempt_that_lost_its_lease_notes_no_estimate(store: Store) -> None:
    job_id = submit(store, tenant_of(store))
    store.leases.claim("worker", "default")
    with pytest.raises(LeaseLost):
        store.leases.note_estimate(job_id, 2, ESTIMATE)


def test_warnings_of_a_job_are_its_first_events(store: Store) -> None:
    tenant_id = tenant_of(store)
    spec = spec_of(dataset_of(store, tenant_id))
    job = store.jobs.submit(tenant_id, spec, base_revision="r", warnings=("mind this",)).job
    events, _ = store.jobs.events(tenant_id, job.id)
    assert [(e.level, e.message) for e in events] == [("info", "queued"), ("warn", "mind this")]


def test_jobs_from_before_there_were_estimates_still_load(store: Store) -> None:
    tenant_id = tenant_of(store)
    job_id = submit(store, tenant_id)
    with store.database.write() as connection:
        command.downgrade(store.database._alembic(connection), "0002")

    store.database.migrate()

    job = store.jobs.get(tenant_id, job_id)
    assert (job.estimate, job.actual, job.spec.method.auto) == (None, None, ())
