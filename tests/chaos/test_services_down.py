"""PostgreSQL, Redis and S3 go away and come back: what the API says, what workers do meanwhile."""

import socket
import time

import psycopg
import pytest

from api.health import CHECK_S
from jobs.model import Status
from tests import clock
from tests.chaos.client import api_of
from tests.chaos.conftest import Make
from tests.chaos.house import LEASE_S, lost, wait_until
from tests.chaos.trainer import Script, row_of
from tests.gate import gate_before
from tests.record import Record
from tests.servers import S3Server, valkey


@pytest.mark.parametrize(
    ("times", "down_s"),
    [
        ({}, 3 * LEASE_S),
        pytest.param(
            {"lease_s": 30.0, "heartbeat_s": 2.0, "sweep_s": 5.0}, 32.0, marks=pytest.mark.soak
        ),
    ],
    ids=["short", "as-shipped"],
)
def test_a_database_that_is_gone_longer_than_a_lease_costs_one_attempt_and_no_job(
    make_house: Make,
    postgres_store_url: str,
    record: Record,
    times: dict[str, float],
    down_s: float,
) -> None:
    with gate_before(postgres_store_url) as (gate, through):
        house = make_house(database_url=postgres_store_url, **times)
        house.settings = house.settings.model_copy(update={"database_url": through})
        job_id = house.post(Script(steps=int(40 + 10 * down_s), step_s=0.1))
        with api_of(house) as client, house.at_work() as (worker,):
            house.wait(job_id, lambda job: job.progress.step >= 8)
            gate.shut()
            slowest, codes, headers = 0.0, set(), set()
            down_until = time.monotonic() + down_s
            while time.monotonic() < down_until:
                answer, took = client.timed("GET", f"/jobs/{job_id}")
                slowest = max(slowest, took)
                codes.add((answer.status_code, answer.json()["error"]["code"]))
                headers.add("retry-after" in answer.headers)
                time.sleep(0.15)
            assert client.http.get("/healthz").status_code == 200
            gate.open()
            back = wait_until(lambda: client.http.get(f"/jobs/{job_id}").status_code == 200)
            job = house.wait(job_id)
            assert worker.alive
    record("R6", "answered while PostgreSQL is away", sorted(codes)[0][0], exactly=503)
    assert codes == {(503, "database_unavailable")}
    assert headers == {True}
    record("R6", "slowest 503", slowest, "s", at_most=2.0)
    record("R6", "answering again after its return", back, "s", at_most=5.0)
    assert job.status is Status.SUCCEEDED
    record("R6", "attempts, away for longer than a lease", job.attempt, exactly=2)
    house.check()


def test_a_database_that_is_gone_for_less_than_a_lease_is_not_noticed_by_the_training(
    make_house: Make, postgres_store_url: str, record: Record
) -> None:
    with gate_before(postgres_store_url) as (gate, through):
        house = make_house(database_url=postgres_store_url, lease_s=20.0)
        house.settings = house.settings.model_copy(update={"database_url": through})
        job_id = house.post(Script(steps=30, step_s=0.1))
        with house.at_work():
            house.wait(job_id, lambda job: job.progress.step >= 5)
            gate.shut()
            time.sleep(2.0)
            gate.open()
            job = house.wait(job_id)
    record("R6", "attempts, away for a tenth of a lease", job.attempt, exactly=1)
    steps = [event.data["step"] for event in house.store.jobs.metrics(house.tenant_id, job_id)]
    record("R6", "steps recorded of 30", len(steps), exactly=30)
    house.check()


def test_a_connection_whose_server_is_lost_without_a_word_is_given_up_by_tcp(
    postgres_house: Make, record: Record
) -> None:
    house = postgres_house()
    with house.store.database.read() as connection:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        with socket.socket(fileno=psycopg_socket(raw)) as tcp:
            kept = tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            unacknowledged_ms = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            tcp.detach()
    assert kept == 1
    record("R6", "a lost connection ends after", unacknowledged_ms / 1000, "s", at_most=10.0)


def psycopg_socket(connection: "psycopg.Connection[object]") -> int:
    return connection.fileno()


def test_without_redis_jobs_are_taken_and_run_once_it_is_back(
    make_house: Make, record: Record
) -> None:
    with valkey() as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
    house = make_house(broker_url=url, sweep_s=5.0, lease_s=60.0)
    dataset_id = house.add_dataset([row_of(Script())])
    slowest, ids = 0.0, []
    with valkey(port), api_of(house) as warm:
        answer = warm.post_job(dataset_id)
        assert answer.status_code == 201, answer.text
        ids.append(answer.json()["id"])
        with house.at_work():
            house.wait_all(ids)
    with api_of(house) as client:
        with valkey(port):
            worker = house.nursery.start(house.settings)
            assert client.ready()["broker"] == "ok"
            time.sleep(1.0)
        try:
            for _ in range(5):
                asked = clock.now()
                answer = client.post_job(dataset_id)
                slowest = max(slowest, clock.now() - asked)
                assert answer.status_code == 201, answer.text
                ids.append(answer.json()["id"])
            found = client.ready()
            with valkey(port):
                back_at = time.time()
                jobs = house.wait_all(ids)
            begun = min(a["claimed_at"] for a in house.attempts() if a["job_id"] in ids[1:])
        finally:
            house.nursery.end(worker)
    record("R4", "POST /jobs without Redis", slowest, "s", at_most=1.0)
    record("R4", "/readyz without Redis", found["status"], exactly="degraded")
    record(
        "R4",
        "started after Redis' return",
        max(0.0, clock.ran_s(back_at, begun)),
        "s",
        at_most=10.0,
    )
    record("R4", "jobs lost", lost(jobs), exactly=0)
    house.check()


@pytest.mark.parametrize("part", ["database", "broker", "storage"])
def test_readyz_says_which_part_is_gone_and_healthz_is_of_the_process(
    make_house: Make,
    postgres_store_url: str,
    redis_url: str,
    s3: S3Server,
    record: Record,
    part: str,
) -> None:
    with (
        gate_before(postgres_store_url) as (database, database_url),
        gate_before(redis_url) as (broker, broker_url),
        gate_before(s3.endpoint_url) as (storage, endpoint_url),
    ):
        house = make_house(
            database_url=database_url,
            broker_url=broker_url,
            storage_url=f"s3://{s3.bucket}",
            s3_endpoint_url=endpoint_url,
            s3_access_key=s3.access_key,
            s3_secret_key=s3.secret_key,
        )
        gate = {"database": database, "broker": broker, "storage": storage}[part]
        with api_of(house) as client:
            assert client.ready()[part] == "ok"
            slowest = 0.0
            for said, change in (("unreachable", gate.shut), ("ok", gate.open)) * 2:
                change()
                slowest = max(slowest, wait_until(lambda want=said: client.ready()[part] == want))
                others = {"database", "broker", "storage"} - {part}
                assert {client.ready()[other] for other in others} == {"ok"}
                answer, took = client.timed("GET", "/healthz")
                assert answer.status_code == 200
                assert took < CHECK_S
    record("R24", f"/readyz turns, {part}", slowest, "s", at_most=5.0)
