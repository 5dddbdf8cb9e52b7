"""What the routes work with, built once from the settings and handed to the application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated
from weakref import WeakValueDictionary

import anyio.to_thread
import httpx
from fastapi import Depends, FastAPI, Request

from api.instruments import Instruments
from api.rates import LocalRates, Rates, open_rates
from engine.bases import BaseCatalogue
from jobs.census import Census
from jobs.courier import Courier
from jobs.opening import open_objects, open_store
from jobs.origin import here
from jobs.queue import WakeUps, open_wakeups
from jobs.settings import Settings
from jobs.store import Store
from storage.objects import ObjectStore

# The inference server may think for long, but it says hello at once.
INFERENCE_TIMEOUT = httpx.Timeout(600.0, connect=2.0, pool=5.0)
SLOW_AT_ONCE = 2  # calls that keep a core busy for seconds
OUTSIDE_AT_ONCE = 4  # calls that wait for a client's own server
INFERENCE_LIMITS = httpx.Limits(max_connections=512, max_keepalive_connections=64)


class OneEach:
    """A lock for each tenant: what it waits for at once keeps no place from the others."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, tenant_id: str) -> asyncio.Lock:
        """Gone again when nobody of the tenant holds it or waits for it."""
        return self._locks.setdefault(tenant_id, asyncio.Lock())


@dataclass
class Services:
    settings: Settings
    store: Store
    objects: ObjectStore
    bases: BaseCatalogue
    wakeups: WakeUps
    http: httpx.AsyncClient  # its base URL is the inference server
    rates: Rates = field(default_factory=LocalRates)
    instruments: Instruments = field(default_factory=Instruments)
    slow: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SLOW_AT_ONCE))
    outside: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(OUTSIDE_AT_ONCE))
    completing: OneEach = field(default_factory=OneEach)  # uploads, which may take minutes
    testing: OneEach = field(default_factory=OneEach)  # webhooks

    async def close(self) -> None:
        await self.http.aclose()
        await self.rates.close()
        self.store.close()


def open_services(settings: Settings) -> Services:
    """The parts that the settings name. Raises StoreUnavailable and StorageError."""
    instruments, store = Instruments(), open_store(settings)
    instruments.registry.register(Census(store.database, settings.queue, settings.tenant_classes))
    return Services(
        settings=settings,
        store=store,
        objects=open_objects(settings, instruments.registry),
        bases=BaseCatalogue(settings.base_models),
        wakeups=open_wakeups(settings.broker_url),
        rates=open_rates(settings.broker_url),
        http=httpx.AsyncClient(
            base_url=settings.inference,
            headers=_headers(settings),
            timeout=INFERENCE_TIMEOUT,
            limits=INFERENCE_LIMITS,
            trust_env=False,
            event_hooks={"request": [_with_origin] if settings.generator == "luthier" else []},
        ),
        instruments=instruments,
    )


async def _with_origin(request: httpx.Request) -> None:
    """Tell Luthier's inference server which request, and which trace, this one belongs to.

    vLLM is not told: two requests with one id, which a client may send, are an error there.
    """
    origin = here()
    if origin.request_id is not None:
        request.headers["x-request-id"] = origin.request_id
    if origin.traceparent is not None:
        request.headers["traceparent"] = origin.traceparent


def _headers(settings: Settings) -> dict[str, str]:
    key = settings.vllm_api_key
    if settings.generator != "vllm" or key is None:
        return {}
    return {"authorization": f"Bearer {key.get_secret_value()}"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Bring webhooks while the application runs; close what was opened when it stops."""
    services: Services = app.state.services
    courier = Courier(
        services.store.outbox,
        networks=services.settings.webhook_networks,
        retry_s=services.settings.webhook_retry_s,
        observe=services.instruments.webhook,
    )
    courier.start()
    try:
        yield
    finally:
        await anyio.to_thread.run_sync(courier.close)
        await services.close()


async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


FromServices = Annotated[Services, Depends(services_of)]
