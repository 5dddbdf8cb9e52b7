"""The outbox of webhooks over both databases."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.errors import Conflict
from jobs.model import Status
from jobs.outbox import Delivery
from jobs.store import Store
from jobs.tables import webhook_deliveries
from jobs.webhooks import MOST_ENDPOINTS, TYPES
from tests.contract.test_jobs_store import dataset_of, spec_of, tenant_of

ALL = tuple(TYPES.values())


@pytest.fixture(params=["sqlite", "postgresql"])
def make_store(
    request: pytest.FixtureRequest, store_url: Callable[[str], str]
) -> Iterator[Callable[[], Store]]:
    url = store_url(request.param)
    made: list[Store] = []

    def make() -> Store:
        made.append(Store(url, pepper="p"))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: Callable[[], Store]) -> Store:
    return make_store()


@pytest.fixture
def tenant_id(store: Store) -> str:
    return tenant_of(store)


def listen(store: Store, tenant_id: str, name: str = "a") -> str:
    return store.webhooks.create(tenant_id, name, f"https://{name}.example/", ALL).id


def cancel_one(store: Store, tenant_id: str) -> str:
    spec = spec_of(dataset_of(store, tenant_id))
    job = store.jobs.submit(tenant_id, spec, base_revision="r").job
    store.jobs.cancel(tenant_id, job.id)
    return job.id


def later(store: Store, seconds: float) -> None:
    with store.database.write() as connection:
        due = webhook_deliveries.c.due_at - seconds
        until = webhook_deliveries.c.claimed_until - seconds
        connection.execute(webhook_deliveries.update().values(due_at=due, claimed_until=until))


def claimed(store: Store) -> Delivery:
    found = store.outbox.claim()
    assert found is not None
    return found


def test_an_end_is_in_the_outbox_of_its_tenant_alone(store: Store, tenant_id: str) -> None:
    theirs = tenant_of(store, "theirs")
    mine, _ = listen(store, tenant_id), listen(store, theirs)
    job_id = cancel_one(store, tenant_id)
    delivery = claimed(store)
    assert delivery.endpoint.id == mine
    assert job_id.encode() in delivery.body
    assert store.outbox.claim() is None
    store.outbox.delivered(delivery)
    assert store.outbox.waiting() == 0


def test_a_job_that_does_not_end_is_not_told_of(store: Store, tenant_id: str) -> None:
    listen(store, tenant_id)
    spec = spec_of(dataset_of(store, tenant_id))
    store.jobs.submit(tenant_id, spec, base_revision="r")
    claim = store.leases.claim("worker", "default")
    assert claim is not None
    store.leases.release(claim.job.id, 1)
    assert store.outbox.waiting() == 0


def test_of_many_couriers_each_delivery_is_tried_by_one(
    make_store: Callable[[], Store], store: Store, tenant_id: str
) -> None:
    for name in "abcdefgh":
        listen(store, tenant_id, name)
    cancel_one(store, tenant_id)
    stores = [make_store() for _ in range(4)]

    def empty(of: Store) -> list[tuple[str, str]]:
        found = []
        while delivery := of.outbox.claim():
            found.append((delivery.event_id, delivery.endpoint.id))
            of.outbox.delivered(delivery)
        return found

    with ThreadPoolExecutor(8) as pool:
        taken = [one for found in pool.map(empty, stores * 2) for one in found]
    later(store, 120)  # what two of them went for at once is left for the next look
    taken += empty(store)
    assert len(taken) == len(set(taken)) == 8
    assert store.outbox.waiting() == 0


def test_one_try_at_a_time_goes_to_an_endpoint(store: Store, tenant_id: str) -> None:
    listen(store, tenant_id)
    cancel_one(store, tenant_id)
    cancel_one(store, tenant_id)
    first = claimed(store)
    assert store.outbox.claim() is None
    assert store.outbox.postpone(first, 100.0, 1000.0)
    assert claimed(store).event_id != first.event_id


def test_a_tenant_whose_endpoints_are_slow_keeps_nobody_else_waiting(
    store: Store, tenant_id: str
) -> None:
    for name in "abcd":
        listen(store, tenant_id, name)
    cancel_one(store, tenant_id)
    theirs = tenant_of(store, "theirs")
    their_endpoint = listen(store, theirs)
    first = claimed(store)
    cancel_one(store, theirs)  # after all of ours
    assert first.endpoint.tenant_id == tenant_id
    assert claimed(store).endpoint.id == their_endpoint
    assert [claimed(store).endpoint.tenant_id for _ in range(3)] == [tenant_id] * 3
    assert store.outbox.claim() is None


def test_a_late_courier_can_change_nothing(store: Store, tenant_id: str) -> None:
    listen(store, tenant_id)
    cancel_one(store, tenant_id)
    late = claimed(store)
    later(store, 61)
    second = claimed(store)
    assert (second.event_id, second.body, second.tries) == (late.event_id, late.body, 2)
    store.outbox.delivered(late)
    assert store.outbox.waiting() == 1
    assert store.outbox.postpone(second, 1000.0, 10.0) is False
    assert store.outbox.waiting() == 0


def test_a_deleted_endpoint_is_told_nothing_more(store: Store, tenant_id: str) -> None:
    endpoint_id = listen(store, tenant_id)
    cancel_one(store, tenant_id)
    store.webhooks.delete(tenant_id, endpoint_id)
    assert store.outbox.waiting() == 0


def test_endpoints_that_are_made_at_once_are_no_more_than_there_may_be(
    store: Store, tenant_id: str
) -> None:
    def make(number: int) -> bool:
        try:
            listen(store, tenant_id, f"n{number}")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(MOST_ENDPOINTS + 12)))
    assert sum(made) == MOST_ENDPOINTS


def test_jobs_are_found_by_their_metadata(store: Store, tenant_id: str) -> None:
    dataset_id = dataset_of(store, tenant_id)
    odd = {'a"b.c{,}': "x,'y}", "empty": "", "ü": "ß"}
    made = [
        store.jobs.submit(
            tenant_id, spec_of(dataset_id).model_copy(update={"metadata": pairs}), base_revision="r"
        ).job.id
        for pairs in ({"a": "1", "b": "2"}, {"a": "1"}, odd, {})
    ]

    def found(metadata: dict[str, str] | None) -> set[str]:
        return {job.id for job in store.jobs.trainings(tenant_id, metadata=metadata).data}

    assert found(None) == set(made)
    assert found({}) == {made[3]}
    assert found({"a": "1"}) == set(made[:2])
    assert found({"a": "1", "b": "2"}) == {made[0]}
    assert found({"a": "2"}) == set()
    for name, value in odd.items():
        assert found({name: value}) == {made[2]}, name
    assert TYPES.keys() == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
