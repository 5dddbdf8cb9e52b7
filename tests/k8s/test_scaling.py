"""KEDA's question to the jobs table, asked of a real PostgreSQL with real jobs in it."""

from collections.abc import Callable

import psycopg
import pytest

from jobs.database import Database
from tests.k8s.manifests import Object, by_name, of_kind

SCALER_ROLE = (
    "GRANT USAGE ON SCHEMA public TO luthier_scaler",
    "GRANT SELECT (queue, status) ON jobs TO luthier_scaler",
)


@pytest.fixture
def database(postgres_url: str) -> str:
    """The URL, as psql takes it, of a database with the newest schema."""
    database = Database(postgres_url)
    database.migrate()
    database.close()
    return postgres_url.replace("postgresql+psycopg://", "postgresql://")


def test_workers_are_counted_by_their_classs_queued_and_running_jobs(
    gpu: list[Object], database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        ask = _asking(gpu, connection)
        assert (ask("l4"), ask("h100")) == (0, 0), "no jobs, no workers"
        for number, (queue, status) in enumerate(
            [
                ("l4", "queued"),
                ("l4", "running"),
                ("l4", "paused"),
                ("l4", "succeeded"),
                ("l4", "failed"),
                ("l4", "cancelled"),
                ("h100", "running"),
            ]
        ):
            _insert(connection, f"job_{number}", queue, status)
        assert (ask("l4"), ask("h100")) == (2, 1)


def test_a_role_that_reads_two_columns_is_enough_for_it(gpu: list[Object], database: str) -> None:
    with psycopg.connect(database) as connection:  # undone at the end, roles are the server's
        _insert(connection, "job_1", "l4", "queued")
        connection.execute("CREATE ROLE luthier_scaler")
        for grant in SCALER_ROLE:
            connection.execute(grant.encode())
        connection.execute("SET ROLE luthier_scaler")
        assert _asking(gpu, connection)("l4") == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT spec FROM jobs")
        connection.rollback()


def test_every_class_scales_from_zero_by_its_own_deployment(gpu: list[Object]) -> None:
    scalers = of_kind(gpu, "ScaledObject")
    assert len(scalers) == 2
    for scaler in scalers:
        spec = scaler["spec"]
        assert spec["minReplicaCount"] == 0
        target = by_name(gpu, "Deployment", spec["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"], "KEDA says how many"
        (trigger,) = spec["triggers"]
        by_name(gpu, "TriggerAuthentication", trigger["authenticationRef"]["name"])
        queue = target["metadata"]["labels"]["luthier.dev/queue"]
        assert f"queue = '{queue}'" in trigger["metadata"]["query"]


def _asking(gpu: list[Object], connection: psycopg.Connection) -> Callable[[str], int]:
    def ask(name: str) -> int:
        (trigger,) = by_name(gpu, "ScaledObject", f"luthier-worker-{name}")["spec"]["triggers"]
        row = connection.execute(trigger["metadata"]["query"].encode()).fetchone()
        assert row is not None
        return int(row[0])

    return ask


def _insert(connection: psycopg.Connection, job_id: str, queue: str, status: str) -> None:
    connection.execute(
        """INSERT INTO jobs (id, tenant_id, status, queue, priority, spec, base_revision, attempt,
                             losses, event_seq, progress, created_at)
           VALUES (%s, 't', %s, %s, 0, '{}', 'r', 0, 0, 0, '{}', 0)""",
        (job_id, status, queue),
    )
