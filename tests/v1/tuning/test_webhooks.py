"""Webhooks by OpenAI's own SDK, and what arrives at a real receiver."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpcore
import openai
import pytest

from jobs.courier import Courier, Outcome
from jobs.settings import Settings
from jobs.store import Store
from jobs.tables import webhook_deliveries
from tests.api.making import unhurried
from tests.api.serving import wait_until
from tests.bases import make_hollow_base
from tests.contract.test_jobs_store import dataset_of, spec_of, tenant_of
from tests.databases import new_sqlite
from tests.v1.tuning.receiver import Got, Receiver, receiving, with_status
from tests.v1.tuning.service import Service
from tests.workers import REPO

ENDS: Any = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
LOOPBACK = "127.0.0.0/8"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def live_settings(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """As elsewhere, with the operator's leave to send to this machine."""
    base = str(make_hollow_base(tmp_path_factory.mktemp("base")))
    return unhurried(
        data_dir=tmp_path / "data", base_models={"tiny": base}, webhook_networks=(LOOPBACK,)
    )


def create(sdk: openai.OpenAI, live: Service) -> str:
    block: Any = {"type": "supervised", "supervised": {"max_length": 64}}
    job = sdk.fine_tuning.jobs.create(model="tiny", training_file=live.upload(), method=block)
    return job.id


def opened(sdk: openai.OpenAI, got: Got, secret: str) -> Any:
    return sdk.webhooks.unwrap(got.body, got.headers, secret=secret)


def test_endpoints_are_made_looked_at_changed_and_deleted(
    sdk: openai.OpenAI, receiver: Receiver, other: Callable[[], openai.OpenAI]
) -> None:
    made = sdk.webhooks.create(name="mine", url=receiver.url, event_types=ENDS)
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
    found = sdk.webhooks.retrieve(made.id)
    assert (found.name, found.url, found.event_types) == ("mine", receiver.url, ENDS)
    assert "signing_secret" not in found.model_dump()

    changed = sdk.webhooks.update(made.id, name="ours", event_types=ENDS[:1])
    assert (changed.name, changed.url, changed.event_types) == ("ours", receiver.url, ENDS[:1])
    second = sdk.webhooks.create(name="b", url=receiver.url, event_types=ENDS[1:])
    assert [one.id for one in sdk.webhooks.list(limit=1)] == [second.id, made.id]
    assert sdk.webhooks.event_types.list().data == ENDS
    with other() as stranger:
        assert list(stranger.webhooks.list()) == []
        for act in (stranger.webhooks.retrieve, stranger.webhooks.delete):
            with pytest.raises(openai.NotFoundError):
                act(made.id)
    assert sdk.webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.webhooks.retrieve(made.id)


def test_the_ends_of_jobs_arrive_signed(
    live: Service, sdk: openai.OpenAI, receiver: Receiver
) -> None:
    secret = sdk.webhooks.create(name="all", url=receiver.url, event_types=ENDS).signing_secret
    sdk.webhooks.create(name="failed", url=receiver.url, event_types=["fine_tuning.job.failed"])
    ended = {"succeeded": create(sdk, live)}
    live.claim(ended["succeeded"])
    model = live.succeed(ended["succeeded"])
    ended["failed"] = create(sdk, live)
    live.claim(ended["failed"])
    live.fail(ended["failed"])
    ended["cancelled"] = create(sdk, live)
    sdk.fine_tuning.jobs.cancel(ended["cancelled"])
    merge = {"adapters": [{"id": model}], "into_base": True}
    merged = live.http.post("/adapters/merge", json=merge).json()["id"]
    live.http.post(f"/jobs/{merged}/cancel")  # which is no fine-tuning job

    receiver.wait_for(4)
    wait_until(lambda: live.store.outbox.waiting() == 0)
    assert len(receiver.got) == 4
    told = {}
    for got in receiver.got:
        try:
            event = opened(sdk, got, secret)
        except openai.InvalidWebhookSignatureError:
            continue  # that one is signed with the other endpoint's secret
        assert (event.object, event.id) == ("event", got.headers["webhook-id"])
        assert abs(event.created_at - time.time()) < 60
        told[event.type.rpartition(".")[2]] = event.data.id
    assert told == ended
    failed = [got for got in receiver.got if b"job.failed" in got.body]
    assert len({got.headers["webhook-id"] for got in failed}) == 1


def test_a_test_says_what_was_answered(sdk: openai.OpenAI, receiver: Receiver) -> None:
    made = sdk.webhooks.create(name="mine", url=receiver.url, event_types=ENDS)
    result = sdk.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert (result.status_code, result.success, result.webhook_endpoint_id) == (200, True, made.id)
    event = opened(sdk, receiver.got[0], made.signing_secret)
    assert event.type == "fine_tuning.job.failed"
    receiver.answer = with_status(503)
    again = sdk.webhooks.test(made.id, event_type="fine_tuning.job.succeeded")
    assert again.status_code == 503
    sdk.webhooks.update(made.id, url="http://127.0.0.1:9/nothing")
    with pytest.raises(openai.UnprocessableEntityError) as nothing:
        sdk.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert (nothing.value.code, nothing.value.param) == ("webhook_failed", "url")


def test_a_tenant_that_tests_slow_endpoints_keeps_nobody_else_waiting(
    sdk: openai.OpenAI, receiver: Receiver, other: Callable[[], openai.OpenAI]
) -> None:
    answered = threading.Event()
    receiver.answer = lambda handler, number: answered.wait(9) and with_status(200)(handler, number)
    slow = sdk.webhooks.create(name="slow", url=receiver.url, event_types=ENDS).id
    with other() as stranger, receiving() as quick, ThreadPoolExecutor(6) as pool:
        theirs = stranger.webhooks.create(name="quick", url=quick.url, event_types=ENDS).id
        tests = [pool.submit(sdk.webhooks.test, slow, event_type=ENDS[0]) for _ in range(6)]
        receiver.wait_for(1)
        assert stranger.webhooks.test(theirs, event_type=ENDS[0], timeout=5).success
        assert len(receiver.got) == 1
        answered.set()
        assert all(test.result().success for test in tests)


def test_a_rotated_secret_signs_and_the_old_one_only_where_it_was_kept(
    sdk: openai.OpenAI, receiver: Receiver
) -> None:
    made = sdk.webhooks.create(name="mine", url=receiver.url, event_types=ENDS)
    kept = sdk.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert kept.signing_secret != made.signing_secret
    sdk.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    for secret in (made.signing_secret, kept.signing_secret):
        assert opened(sdk, receiver.got[0], secret).type == "fine_tuning.job.failed"
    last = sdk.webhooks.rotate_secret(made.id)
    sdk.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    opened(sdk, receiver.got[1], last.signing_secret)
    for secret in (made.signing_secret, kept.signing_secret):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            opened(sdk, receiver.got[1], secret)


def test_secrets_are_nowhere_in_the_database(live: Service, sdk: openai.OpenAI) -> None:
    made = sdk.webhooks.create(name="mine", url="http://127.0.0.1:9/", event_types=ENDS)
    secret = made.signing_secret.removeprefix("whsec_").encode()
    folder = live.services.settings.data_dir
    stored = b"".join(path.read_bytes() for path in folder.glob("luthier.db*"))
    assert made.id.encode() in stored
    assert secret not in stored


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://user:word@example.com"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://example.com:x"}, "url"),
        ({"url": "https://example.com/a b"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://[::ffff:169.254.169.254]/"}, "url"),
        ({"url": "https://exämple.com/"}, "url"),
        ({"event_types": ["batch.completed"]}, "event_types.0"),
        ({"event_types": []}, "event_types"),
        ({"name": ""}, "name"),
        ({"secret": "whsec_x"}, "secret"),
    ],
)
def test_what_is_wrong_is_told_at_its_field(
    sdk: openai.OpenAI, changes: dict[str, Any], param: str
) -> None:
    body = {"name": "mine", "url": "https://example.com/", "event_types": ENDS} | changes
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.post("/webhook_endpoints", body=body, cast_to=object)
    assert refused.value.param == param


@pytest.mark.anyio
async def test_the_async_client_does_it_all_too(
    async_sdk: openai.AsyncOpenAI, receiver: Receiver
) -> None:
    webhooks = async_sdk.webhooks
    made = await webhooks.create(name="mine", url=receiver.url, event_types=ENDS)
    assert [one.id async for one in webhooks.list()] == [made.id]
    assert (await webhooks.update(made.id, name="b")).name == "b"
    assert (await webhooks.test(made.id, event_type="fine_tuning.job.failed")).success
    got = receiver.got[0]
    webhooks.verify_signature(got.body, got.headers, secret=made.signing_secret)
    rotated = await webhooks.rotate_secret(made.id)
    assert rotated.signing_secret != made.signing_secret
    assert (await webhooks.event_types.list()).data == ENDS
    assert (await webhooks.retrieve(made.id)).name == "b"
    assert (await webhooks.delete(made.id)).deleted


# Without the API's own courier: the moves of one are watched here.


class Couriers:
    """Couriers of one database that hurry, and what they said of their tries."""

    def __init__(self, store: Store) -> None:
        self.store, self.outcomes = store, []  # type: ignore[var-annotated]
        self._running: list[Courier] = []

    def start(self, retry_s: float = 60.0) -> None:
        observe: Callable[[Outcome], None] = self.outcomes.append
        courier = Courier(
            self.store.outbox,
            networks=(ip_network(LOOPBACK),),
            retry_s=retry_s,
            observe=observe,
            poll_s=0.02,
            first_delay_s=0.02,
        )
        courier.start()
        self._running.append(courier)

    def close(self) -> None:
        for courier in self._running:
            courier.close()
        self._running.clear()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(new_sqlite(tmp_path / "jobs.db"), pepper="p")
    yield store
    store.close()


@pytest.fixture
def couriers(store: Store) -> Iterator[Couriers]:
    couriers = Couriers(store)
    yield couriers
    couriers.close()


def end_a_job(store: Store, url: str) -> str:
    """A tenant's job that has been cancelled, and the endpoint's secret."""
    tenant_id = tenant_of(store)
    endpoint = store.webhooks.create(tenant_id, "mine", url, tuple(ENDS))
    job = store.jobs.submit(tenant_id, spec_of(dataset_of(store, tenant_id)), base_revision="r").job
    store.jobs.cancel(tenant_id, job.id)
    return endpoint.secret


def test_what_does_not_arrive_is_sent_again_with_the_same_id(
    store: Store, couriers: Couriers, receiver: Receiver
) -> None:
    receiver.answer = with_status(500, 302, 204)
    secret = end_a_job(store, receiver.url)
    couriers.start()
    got = receiver.wait_for(3)
    wait_until(lambda: store.outbox.waiting() == 0)
    couriers.close()
    assert couriers.outcomes == ["bad_status", "bad_status", "delivered"]
    assert len(receiver.got) == 3
    assert len({(one.headers["webhook-id"], one.body) for one in got}) == 1
    client = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9")
    for one in got:
        assert opened(client, one, secret).type == "fine_tuning.job.cancelled"


def test_what_never_arrives_is_given_up_in_time_and_noted(
    store: Store, couriers: Couriers, receiver: Receiver
) -> None:
    receiver.answer = with_status(500)
    end_a_job(store, receiver.url)
    couriers.start(retry_s=1.0)
    wait_until(lambda: store.outbox.waiting() == 0)
    couriers.close()
    assert couriers.outcomes[-1] == "given_up"
    assert len(couriers.outcomes) > 2
    tenant_id = store.tenants.find("ours").id
    assert store.audit.page(tenant_id, limit=1).data[0].action == "webhook.give_up"


def test_a_try_that_breaks_the_courier_is_not_repeated_for_ever(
    store: Store, couriers: Couriers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise LookupError("nobody expected this")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", broken)
    end_a_job(store, "http://127.0.0.1:9/")
    couriers.start(retry_s=0.3)
    wait_until(lambda: store.outbox.waiting() == 0)
    couriers.close()
    assert couriers.outcomes[0] == "unreachable"
    assert couriers.outcomes[-1] == "given_up"


KILLED = """
import sys
import threading
from ipaddress import ip_network
from jobs.courier import Courier
from jobs.store import Store

courier = Courier(
    Store(sys.argv[1], pepper="p").outbox,
    networks=(ip_network("127.0.0.0/8"),), retry_s=60, observe=print, poll_s=0.02,
)
courier.start()
threading.Event().wait()
"""


def test_a_courier_that_is_killed_in_the_middle_loses_nothing(
    store: Store, couriers: Couriers, receiver: Receiver
) -> None:
    receiver.answer = lambda handler, number: (
        time.sleep(30) if number == 1 else with_status(200)(handler, number)
    )
    end_a_job(store, receiver.url)
    command = [sys.executable, "-c", KILLED, str(store.database.url)]
    process = subprocess.Popen(command, cwd=REPO)
    receiver.wait_for(1)
    process.kill()
    process.wait()
    assert store.outbox.claim() is None, "another courier must not take what is being tried"
    with store.database.write() as connection:  # a minute later
        past = webhook_deliveries.c.due_at - 61
        connection.execute(webhook_deliveries.update().values(due_at=past, claimed_until=past))
    couriers.start()
    got = receiver.wait_for(2)
    wait_until(lambda: store.outbox.waiting() == 0)
    assert got[0].headers["webhook-id"] == got[1].headers["webhook-id"]
    assert got[0].body == got[1].body
