"""What the routes work with, built once from the settings and handed to the application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Request

from api.instruments import Instruments
from api.rates import LocalRates, Rates, open_rates
from engine.bases import BaseCatalogue
from jobs.opening import open_objects, open_store
from jobs.queue import WakeUps, open_wakeups
from jobs.settings import Settings
from jobs.store import Store
from storage.objects import ObjectStore

# The inference server may think for long, but it says hello at once.
INFERENCE_TIMEOUT = httpx.Timeout(600.0, connect=2.0, pool=5.0)
SLOW_AT_ONCE = 2  # calls that keep a core busy for seconds
INFERENCE_LIMITS = httpx.Limits(max_connections=512, max_keepalive_connections=64)


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

    async def close(self) -> None:
        await self.http.aclose()
        await self.rates.close()
        self.store.close()


def open_services(settings: Settings) -> Services:
    """The parts that the settings name. Raises StoreUnavailable and StorageError."""
    return Services(
        settings=settings,
        store=open_store(settings),
        objects=open_objects(settings),
        bases=BaseCatalogue(settings.base_models),
        wakeups=open_wakeups(settings.broker_url),
        rates=open_rates(settings.broker_url),
        http=httpx.AsyncClient(
            base_url=settings.inference,
            headers=_headers(settings),
            timeout=INFERENCE_TIMEOUT,
            limits=INFERENCE_LIMITS,
            trust_env=False,
        ),
    )


def _headers(settings: Settings) -> dict[str, str]:
    key = settings.vllm_api_key
    if settings.generator != "vllm" or key is None:
        return {}
    return {"authorization": f"Bearer {key.get_secret_value()}"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Close what was opened when the application stops."""
    try:
        yield
    finally:
        await app.state.services.close()


async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


FromServices = Annotated[Services, Depends(services_of)]
