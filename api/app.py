"""The HTTP application: every room's routes behind one edge. `uvicorn api.app:app` runs it."""

from functools import cache
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from api import (
    adapters,
    archives,
    audit,
    checkpoints,
    datasets,
    docs,
    estimates,
    events,
    generate,
    graders,
    health,
    jobs,
    merges,
    models,
    pipelines,
    previews,
    score,
    traces,
)
from api.auth import Authentication
from api.bodies import PATIENCE_S, BodyLimits
from api.middleware import Edge
from api.services import Services, lifespan, open_services
from api.signposts import signpost
from api.v1 import chat as v1_chat
from api.v1 import checkpoints as v1_checkpoints
from api.v1 import completions as v1_completions
from api.v1 import events as v1_events
from api.v1 import files, uploads
from api.v1 import graders as v1_graders
from api.v1 import models as v1_models
from api.v1 import tuning as v1_tuning
from api.v1 import webhooks as v1_webhooks
from jobs.settings import Settings

ROOMS = (
    datasets,
    previews,
    jobs,
    estimates,
    events,
    checkpoints,
    pipelines,
    archives,
    merges,
    adapters,
    generate,
    score,
    graders,
    models,
    v1_chat,
    v1_completions,
    files,
    uploads,
    audit,
    v1_tuning,
    v1_events,
    v1_checkpoints,
    v1_graders,
    v1_models,
    v1_webhooks,
    health,
    docs,
)
ABOUT = "Fine-tuning as a service: datasets and jobs in, adapters on a shared base model out."


def create_app(services: Services) -> FastAPI:
    app = FastAPI(
        title="Luthier",
        summary=ABOUT,
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,  # ours, in api/docs.py
        redoc_url=None,
        redirect_slashes=False,
        telemetry=traces.NO_OTHERS,
        middleware=[  # the first is the outermost
            Middleware(Edge, instruments=services.instruments),
            Middleware(
                Authentication,
                store=services.store,
                rates=services.rates,
                unverified_per_minute=services.settings.unverified_per_minute,
                public_docs=services.settings.public_docs,
            ),
            Middleware(
                BodyLimits,
                upload_bytes=services.settings.max_upload_bytes,
                patience_s=PATIENCE_S,
            ),
        ],
        exception_handlers={HTTPException: _onward, RequestValidationError: _onward},
    )
    app.state.services = services
    for room in ROOMS:
        app.include_router(room.router)
    app.mount(docs.STATIC, docs.static_files())
    return app


async def _onward(request: Request, error: Exception) -> Response:
    """Let the edge answer what the framework would."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        error.headers = {"allow": ", ".join(sorted(_allowed(request.scope["path"])))}
    if isinstance(error, HTTPException) and error.status_code == 404:
        way = signpost(request.scope["path"], lambda path: bool(_allowed(path)))
        error.detail = f"{error.detail}. {way}" if way else error.detail
    raise error


def routes() -> list[APIRoute]:
    """All of them, by room."""
    return [route for room in ROOMS for route in room.router.routes if isinstance(route, APIRoute)]


def _allowed(path: str) -> set[str]:
    """What a path can be asked with, by all routes that name it: the framework names the first's.

    `/jobs/estimate` is no job, so a path of fewer parameters stands before the others.
    """
    matching = [route for route in routes() if route.path_regex.match(path)]
    named = min((len(route.param_convertors) for route in matching), default=0)
    resource = (route for route in matching if len(route.param_convertors) == named)
    return {verb for route in resource for verb in route.methods or ()}


@cache
def _from_environment() -> FastAPI:
    return create_app(open_services(Settings()))


def __getattr__(name: str) -> Any:
    """`app`, built on first use: importing this module opens nothing."""
    if name == "app":
        return _from_environment()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
