"""S11: what a tenant may have and spend, exact when a hundred ask at the same moment."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest

from api.services import Services
from engine.spec import SftMethod
from jobs.errors import NotFound, QuotaExceeded
from jobs.model import Adapter, Dataset, JobSpec, Status, new_id
from jobs.quotas import Quotas
from jobs.store import Store
from tests.api.inference import Inference
from tests.api.making import publish_adapter, spec_for, unhurried
from tests.record import Record

pytestmark = pytest.mark.anyio

RACE = 100


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, store_url: Callable[[str], str]) -> Iterator[Store]:
    opened = Store(store_url(request.param), pepper="p")
    yield opened
    opened.close()


def tenant_with(store: Store, **limits: int) -> str:
    tenant_id = store.tenants.create("ours").id
    store.quotas.set(tenant_id, limits)
    return tenant_id


def dataset_of(store: Store, tenant_id: str, size_bytes: int = 100) -> Dataset:
    return store.datasets.add(
        Dataset(
            id=new_id("ds"),
            tenant_id=tenant_id,
            name="rows",
            format="jsonl",
            row_type="conversation",
            rows=1,
            size_bytes=size_bytes,
            sha256=new_id("x"),
            duplicates=0,
            warnings=(),
            created_at=0.0,
        )
    )


def submit(store: Store, tenant_id: str, dataset_id: str) -> str:
    spec = JobSpec(base_model="tiny", dataset=dataset_id, method=SftMethod())
    return store.jobs.submit(tenant_id, spec, base_revision="r").job.id


def race(call: Callable[[], Any], *, at_once: int = 16) -> list[Any]:
    """`call` a hundred times, from as many threads as a process has connections for."""
    start = Barrier(at_once)

    def begin(number: int) -> Any:
        if number < at_once:
            start.wait(60)
        try:
            return call()
        except QuotaExceeded as error:
            return error

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(begin, range(RACE)))


def let_through(results: list[Any]) -> int:
    return sum(not isinstance(result, QuotaExceeded) for result in results)


def test_queued_jobs_are_counted_exactly(store: Store, record: Record) -> None:
    tenant_id = tenant_with(store, max_queued_jobs=7)
    dataset = dataset_of(store, tenant_id)
    results = race(lambda: submit(store, tenant_id, dataset.id))
    assert len(store.jobs.page(tenant_id, limit=100).data) == 7
    record("S11", "jobs of 100 posted at once where 7 may queue", let_through(results), exactly=7)


def test_stored_bytes_are_counted_exactly(store: Store, record: Record) -> None:
    tenant_id = tenant_with(store, max_stored_bytes=1_050)
    results = race(lambda: dataset_of(store, tenant_id, 100))
    assert store.quotas.used(tenant_id)["max_stored_bytes"] == 1_000
    record("S11", "datasets of 100 B stored of 100 where 1,050 B may be", let_through(results),
           exactly=10)  # fmt: skip


def test_tokens_are_counted_exactly(store: Store, record: Record) -> None:
    tenant_id = tenant_with(store, max_tokens_per_day=1_000)
    results = race(lambda: store.spending.reserve(tenant_id, 30))
    assert store.spending.today(tenant_id) == 990
    record("S11", "requests of 30 tokens of 100 let through where 1,000 may be spent",
           let_through(results), exactly=33)  # fmt: skip
    late = [result for result in results if isinstance(result, QuotaExceeded)]
    assert all(0 < (error.retry_after_s or 0) <= 86_400 for error in late)


def test_running_jobs_are_counted_exactly(store: Store, record: Record) -> None:
    tenant_id = tenant_with(store, max_running_jobs=3)
    dataset = dataset_of(store, tenant_id)
    for _ in range(20):
        submit(store, tenant_id, dataset.id)
    claims = race(lambda: store.leases.claim("worker", "default"))
    running = store.jobs.page(tenant_id, status=Status.RUNNING, limit=100).data
    assert len(running) == 3
    claimed = sum(claim is not None for claim in claims)
    record("S11", "jobs claimed of 20 by 100 claims where 3 may run", claimed, exactly=3)


def test_a_tenant_at_its_limit_holds_up_nobody(store: Store) -> None:
    full, other = tenant_with(store, max_running_jobs=1), store.tenants.create("theirs").id
    for tenant_id in (full, full, other):
        submit(store, tenant_id, dataset_of(store, tenant_id).id)
    first, second = (store.leases.claim("worker", "default") for _ in range(2))
    assert first is not None
    assert second is not None
    assert {first.job.tenant_id, second.job.tenant_id} == {full, other}
    assert store.leases.claim("worker", "default") is None
    store.leases.release(first.job.id, 1)
    assert store.leases.claim("worker", "default") is not None


def test_what_was_not_used_is_given_back(store: Store) -> None:
    tenant_id = tenant_with(store, max_tokens_per_day=100)
    reserved = store.spending.reserve(tenant_id, 90)
    with pytest.raises(QuotaExceeded, match="90 of at most 100 tokens are spent today"):
        store.spending.reserve(tenant_id, 20)
    store.spending.settle(reserved, 10)
    assert store.spending.today(tenant_id) == 10
    assert store.spending.reserve(tenant_id, 90) is not None


def test_who_has_no_limit_is_not_counted(store: Store) -> None:
    tenant_id = store.tenants.create("ours").id
    assert store.spending.reserve(tenant_id, 10**12) is None
    store.spending.settle(None, 5)
    assert store.spending.today(tenant_id) == 0


def test_a_tenants_own_limits_go_before_the_defaults_and_back(store: Store) -> None:
    tenant_id = store.tenants.create("ours").id
    assert store.quotas.get(tenant_id) == Quotas()
    store.quotas.set(tenant_id, {"max_running_jobs": 2, "reads_per_minute": 0})
    store.quotas.set(tenant_id, {"max_stored_bytes": 5})
    assert store.quotas.own(tenant_id) == {
        "max_running_jobs": 2,
        "reads_per_minute": 0,
        "max_stored_bytes": 5,
    }
    store.quotas.set(tenant_id, {"max_running_jobs": None})
    assert store.quotas.get(tenant_id) == Quotas(reads_per_minute=0, max_stored_bytes=5)
    with pytest.raises(NotFound):
        store.quotas.set(new_id("tn"), {"max_running_jobs": 1})
    with pytest.raises(ValueError, match="no such limits: max_fun"):
        store.quotas.set(tenant_id, {"max_fun": 1})


def test_an_adapter_that_no_longer_fits_is_refused(store: Store) -> None:
    tenant_id = tenant_with(store, max_stored_bytes=150)
    dataset_of(store, tenant_id, 100)
    adapter = Adapter(
        id=new_id("ad"),
        tenant_id=tenant_id,
        name="imported",
        kind="lora",
        base_model="tiny",
        job_id=None,
        size_bytes=51,
        manifest={},
        created_at=0.0,
    )
    with pytest.raises(QuotaExceeded, match="100 of at most 150 bytes"):
        store.adapters.add(adapter)
    store.adapters.add(adapter.model_copy(update={"size_bytes": 50}))


LINE = b'{"prompt": "q", "completion": "a"}\n'


async def test_a_full_tenant_is_told_before_its_upload_is_read(
    client: httpx.AsyncClient, services: Services, stored: Callable[[], list[str]]
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    services.store.quotas.set(tenant_id, {"max_stored_bytes": len(LINE)})
    assert (await client.post("/datasets?format=jsonl", content=LINE)).status_code == 201
    read = 0

    async def rows() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield LINE

    answer = await client.post("/datasets?format=jsonl", content=rows())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (429, "quota_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert "delete datasets or adapters" in error["message"]
    assert read <= 1
    assert len(stored()) == 1


async def test_an_upload_that_does_not_fit_leaves_nothing(
    client: httpx.AsyncClient, services: Services, stored: Callable[[], list[str]]
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    services.store.quotas.set(tenant_id, {"max_stored_bytes": 3 * len(LINE)})
    answers = await asyncio.gather(
        *(client.post("/datasets?format=jsonl", content=LINE * 2) for _ in range(10))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [429] * 9
    assert len(stored()) == len((await client.get("/datasets")).json()["data"]) == 1


async def test_a_full_tenant_trains_nothing_more_until_it_has_made_room(
    client: httpx.AsyncClient, services: Services, dataset: dict[str, Any]
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    services.store.quotas.set(tenant_id, {"max_stored_bytes": dataset["bytes"]})
    answer = await client.post("/jobs", json=spec_for(dataset))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    services.store.quotas.set(tenant_id, {"max_stored_bytes": dataset["bytes"] + 1})
    assert (await client.post("/jobs", json=spec_for(dataset))).status_code == 201


@pytest.fixture
def spender(services: Services) -> Callable[[int], Callable[[], int]]:
    """Gives tenant `ours` so many tokens a day; what it calls says how many are spent."""

    def limited(tokens: int) -> Callable[[], int]:
        tenant_id = services.store.tenants.create("ours").id
        services.store.quotas.set(tenant_id, {"max_tokens_per_day": tokens})
        return lambda: services.store.spending.today(tenant_id)

    return limited


ASK = {"prompt": "say the number", "max_tokens": 20}


@pytest.mark.usefixtures("connected")
async def test_a_generation_costs_what_it_used(
    client: httpx.AsyncClient, spender: Callable[[int], Callable[[], int]], inference: Inference
) -> None:
    spent = spender(60)
    answer = await client.post("/generate", json=ASK)
    assert (answer.status_code, answer.json()["usage"]["total_tokens"]) == (200, 7)
    assert spent() == 7
    streamed = await client.post("/generate", json=ASK | {"stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert spent() == 14
    inference.models = []
    refused = await client.post("/generate", json=ASK | {"max_tokens": 250})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "quota_exceeded")
    assert "wait for the next day" in error["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert refused.headers["x-should-retry"] == "false"
    assert spent() == 14
    assert len(inference.asked) == 2


@pytest.mark.usefixtures("connected")
async def test_a_generation_that_was_refused_costs_nothing(
    client: httpx.AsyncClient, spender: Callable[[int], Callable[[], int]], inference: Inference
) -> None:
    from starlette.responses import JSONResponse

    spent = spender(1000)
    refusal = {"error": {"message": "no", "code": "context_too_long", "param": None}}
    inference.answer = JSONResponse(refusal, status_code=400)
    for stream in (False, True):
        answer = await client.post("/generate", json=ASK | {"stream": stream})
        assert answer.status_code == 400
    assert spent() == 0


@pytest.mark.usefixtures("connected")
async def test_a_stream_that_breaks_off_costs_what_it_might_have_taken(
    client: httpx.AsyncClient, spender: Callable[[int], Callable[[], int]], inference: Inference
) -> None:
    spent = spender(1000)
    inference.pieces = [{"choices": [{"text": "one"}], "usage": None}]  # and no end
    answer = await client.post("/generate", json=ASK | {"stream": True})
    assert "broke off" in answer.text
    assert spent() > ASK["max_tokens"]  # type: ignore[operator]  # a number


@pytest.mark.usefixtures("connected")
async def test_100_generations_at_once_spend_no_more_than_there_is(
    client: httpx.AsyncClient, spender: Callable[[int], Callable[[], int]], record: Record
) -> None:
    spent = spender(100)
    answers = await asyncio.gather(*(client.post("/generate", json=ASK) for _ in range(RACE)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert spent() == 7 * codes.count(200)
    record("S11", "tokens spent by 100 generations at once where 100 may be", spent(), at_most=100)


@pytest.mark.usefixtures("connected")
async def test_scores_and_judges_are_counted_too(
    client: httpx.AsyncClient,
    spender: Callable[[int], Callable[[], int]],
    services: Services,
    tmp_path: Path,
) -> None:
    spent = spender(1000)
    adapter_id = publish_adapter(services, "ours", tmp_path / "reward", kind="reward")
    asked = {"adapter_id": adapter_id, "prompt": "q", "completions": ["a"]}
    scored = await client.post("/score", json=asked)
    assert scored.status_code == 200, scored.text
    assert spent() == 7
    judge = {
        "type": "score_model",
        "model": "tiny",
        "input": [{"role": "user", "content": "rate it"}],
    }
    run = await client.post("/graders/run", json={"grader": judge, "model_sample": "x"})
    assert run.status_code == 200, run.text
    assert spent() == 14


def test_the_operators_defaults_hold_for_every_tenant(tmp_path: Path) -> None:
    from jobs.opening import open_store

    settings = unhurried(data_dir=tmp_path, max_queued_jobs=1, max_running_jobs=2)
    store = open_store(settings)
    limits = store.quotas.get(store.tenants.create("ours").id)
    store.close()
    assert (limits.max_queued_jobs, limits.max_running_jobs) == (1, 2)
