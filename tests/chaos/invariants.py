"""What must hold after whatever happened: every chaos test ends by asking for it."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import sqlalchemy as sa

from adapters import registry
from jobs.model import TERMINAL, TRANSITIONS, Status
from jobs.publishing import adapter_id_of
from jobs.store import Store
from jobs.tables import adapters, attempts, checkpoints, events, jobs
from storage.keys import checkpoint_file
from storage.objects import ObjectStore


def assert_invariants(store: Store, objects: ObjectStore, *, settled: bool = True) -> None:
    """Nothing lost, nothing twice, nothing half. `settled`: every job has ended, too."""
    with store.database.read() as connection:
        rows = connection.execute(sa.select(jobs)).mappings().all()
        tried = connection.execute(
            sa.select(attempts).order_by(attempts.c.job_id, attempts.c.attempt)
        ).mappings()
        by_job: dict[str, list[sa.RowMapping]] = {row["id"]: [] for row in rows}
        for attempt in tried:
            by_job[attempt["job_id"]].append(attempt)
        for job in rows:
            _check_status(job, settled)
            _check_attempts(job, by_job[job["id"]])
            _check_events(connection, job)
        made = connection.execute(sa.select(adapters)).mappings().all()
        kept = connection.execute(sa.select(checkpoints)).mappings().all()
    _check_adapters(objects, list(rows), list(made))
    _check_checkpoints(objects, {row["id"]: row["tenant_id"] for row in rows}, list(kept))


def _check_status(job: sa.RowMapping, settled: bool) -> None:
    status = Status(job["status"])
    leased = job["lease_owner"] is not None and job["lease_expires_at"] is not None
    assert leased == (status is Status.RUNNING), f"{job['id']} is {status}, leased: {leased}"
    assert (job["finished_at"] is not None) == (status in TERMINAL), job["id"]
    assert (job["adapter_id"] is not None) == (status is Status.SUCCEEDED), job["id"]
    assert (job["error"] is not None) == (status is Status.FAILED), job["id"]
    if settled:
        assert status in TERMINAL, f"{job['id']} is {status} for ever"


def _check_attempts(job: sa.RowMapping, tried: list[sa.RowMapping]) -> None:
    numbers = [attempt["attempt"] for attempt in tried]
    assert numbers == list(range(1, job["attempt"] + 1)), f"{job['id']}: attempts {numbers}"
    running = [attempt["attempt"] for attempt in tried if attempt["ended_at"] is None]
    expected = [job["attempt"]] if job["status"] == Status.RUNNING else []
    assert running == expected, f"{job['id']}: attempts {running} have no end"
    won = [attempt["attempt"] for attempt in tried if attempt["outcome"] == "succeeded"]
    assert len(won) == (job["status"] == Status.SUCCEEDED), f"{job['id']} succeeded in {won}"
    for earlier, later in pairwise(tried):
        assert earlier["ended_at"] <= later["claimed_at"], f"{job['id']}: two attempts at once"


def _check_events(connection: sa.Connection, job: sa.RowMapping) -> None:
    query = sa.select(events).where(events.c.job_id == job["id"]).order_by(events.c.seq)
    found = connection.execute(query).mappings().all()
    seqs = [event["seq"] for event in found]
    assert seqs == list(range(1, job["event_seq"] + 1)), f"{job['id']}: gaps in {seqs}"
    order = [event["attempt"] for event in found]
    assert order == sorted(order), f"{job['id']}: a late write of an earlier attempt"
    states = [Status(e["data"]["status"]) for e in found if "status" in e["data"]]
    for before, after in pairwise(states):
        assert after in TRANSITIONS[before], f"{job['id']}: {before} became {after}"
    assert states[-1] == job["status"]


def _check_adapters(
    objects: ObjectStore, rows: list[sa.RowMapping], made: list[sa.RowMapping]
) -> None:
    """One adapter for each job that succeeded, every file of it whole, and none for any other."""
    succeeded = {row["adapter_id"]: row for row in rows if row["status"] == Status.SUCCEEDED}
    of_jobs = [adapter for adapter in made if adapter["job_id"] is not None]
    assert sorted(adapter["id"] for adapter in of_jobs) == sorted(succeeded), "adapters and jobs"
    for adapter in of_jobs:
        job = succeeded[adapter["id"]]
        assert adapter["job_id"] == job["id"]
        assert adapter["id"] == adapter_id_of(job["id"], job["attempt"])
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda one: _whole(objects, one["tenant_id"], one["id"]), of_jobs))
    rowless = _published(objects) - {adapter["id"] for adapter in made}
    lost = {
        adapter_id_of(row["id"], number)
        for row in rows
        for number in range(1, row["attempt"] + (row["status"] != Status.SUCCEEDED))
    }
    assert rowless <= lost, f"files of adapters that no attempt made: {rowless - lost}"


def _whole(objects: ObjectStore, tenant_id: str, adapter_id: str) -> bytes:
    """The archive as a client gets it: each file's sha256 is checked on the way."""
    from adapters.download import download

    return b"".join(download(objects, tenant_id, adapter_id))


def _published(objects: ObjectStore) -> set[str]:
    """The adapters that have a manifest."""
    keys = [info.key for info in objects.list("tenants/") if info.key.endswith("/manifest.json")]
    for key in keys:
        _, tenant_id, _, adapter_id, _ = key.split("/")
        registry.read_manifest(objects, tenant_id, adapter_id)
    return {key.split("/")[3] for key in keys}


def _check_checkpoints(
    objects: ObjectStore, tenants: dict[str, str], kept: list[sa.RowMapping]
) -> None:
    for row in kept:
        for file in row["files"]:
            key = checkpoint_file(
                tenants[row["job_id"]], row["job_id"], row["attempt"], row["step"], file["name"]
            )
            assert objects.head(key).size_bytes == file["size_bytes"], key
