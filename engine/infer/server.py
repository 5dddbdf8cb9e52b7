"""The inference server as an app: one base model, its adapters, and the threads that run them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import torch
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from tokenizers import Tokenizer

from engine.errors import EngineError
from engine.infer import routes
from engine.infer.admission import Admission
from engine.infer.bank import MAX_BYTES
from engine.infer.batching import kv_tokens, shapes_for_rows
from engine.infer.completions import Completions
from engine.infer.connection import ClientGone, RequestIds
from engine.infer.errors import ModelUnusable
from engine.infer.grammars import Grammars
from engine.infer.loader import Loader, Served
from engine.infer.metrics import Metrics
from engine.infer.model import default_stop_token_ids, load_model
from engine.infer.residency import Residency
from engine.infer.scheduler import Scheduler
from engine.infer.score_verification import ScoreVerifier
from engine.infer.scores import Scores
from engine.infer.threads import work_alone
from engine.infer.verification import Verifier

log = structlog.get_logger()

# FastAPI's own spans and logs have the texts of exceptions in them, and those may quote prompts.
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
_SAMPLE_TEXT = "The answer to the question is that every morning the small town by the river wakes."
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25}  # the noise floor of a log-prob


def create_app(
    *,
    base_name: str,
    base_path: Path,
    fetch: Callable[[str], Path],
    threads: int,
    max_running: int = 32,
    max_waiting: int = 256,
    max_resident: int = 32,
    max_resident_bytes: int | None = None,
    max_full_models: int = 2,
    max_full_model_bytes: int | None = None,
    max_context: int | None = None,
    prefill_chunk: int = 512,
    kv_bytes: int = 0,
    lora_bytes: int = MAX_BYTES,
    probe_tolerance: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """The app that serves one base model and its adapters; the model loads when the app starts.

    `fetch(adapter_id)` gives a verified local folder (PEFT LoRA or a whole model, with
    manifest.json) that may go away after some seconds; it is called in threads and raises
    AdapterNotFound, AdapterRefused or AdapterUnavailable. `threads` is what torch may use.
    At most `max_running` sequences generate at once and `max_waiting` wait. Their attention state
    is kept in `kv_bytes`, set aside when the app starts; 0: half of what a GPU has left, 2 GiB on a
    CPU, and room for one whole context in any case. The LoRAs of those in the batch take at most
    `lora_bytes`: a row each, all of the highest rank among them. `dtype` is "float32" or
    "bfloat16". What is measured is in `metrics`. Starting raises ModelUnusable.
    """
    measured = metrics or Metrics()
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        base = await asyncio.to_thread(_load_base, base_name, base_path, chosen, max_context, dtype)
        base.model.layers.bank.max_bytes = lora_bytes
        tokenizer = _load_tokenizer(base_path)
        grammars = await asyncio.to_thread(Grammars, tokenizer)
        metrics = measured
        scheduler = Scheduler(
            tokenizer,
            metrics,
            threads=threads,
            max_running=max_running,
            prefill_chunk=prefill_chunk,
            kv_tokens=kv_tokens(base.model, kv_bytes),
        )
        tolerance = probe_tolerance or _TOLERANCE[base.model.dtype]
        sample = tokenizer.encode(_SAMPLE_TEXT, add_special_tokens=False).ids
        verifier = Verifier(scheduler, base, tolerance=tolerance, sample_ids=sample)
        score_verifier = ScoreVerifier(scheduler, tolerance=tolerance, sample_ids=sample)
        loader = Loader(fetch, base, max_context=max_context)
        residency = Residency(
            base,
            loader,
            verifier,
            score_verifier,
            metrics,
            scheduler.forget,
            max_resident=max_resident,
            max_resident_bytes=max_resident_bytes,
            max_full_models=max_full_models,
            max_full_model_bytes=max_full_model_bytes,
        )
        admission = Admission(metrics, max_running=max_running, max_waiting=max_waiting)
        app.state.engine = routes.Engine(
            base=base,
            scheduler=scheduler,
            residency=residency,
            completions=Completions(tokenizer, scheduler, residency, admission, metrics, grammars),
            scores=Scores(scheduler, residency, admission, metrics),
            metrics=metrics,
            started_at=int(time.time()),
        )
        scheduler.start()
        log.info("inference.started", model=base_name, device=str(chosen), threads=threads)
        try:
            yield
        finally:
            await asyncio.to_thread(scheduler.stop)
            await residency.close()
            loader.close()
            grammars.close()

    app = FastAPI(
        lifespan=lifespan,
        title="Luthier inference",
        docs_url=None,
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
    )
    app.add_middleware(RequestIds)
    app.add_exception_handler(ClientGone, routes.leave)
    for kind in (EngineError, HTTPException, Exception):
        app.add_exception_handler(kind, routes.refuse)
    app.include_router(routes.router)
    return app


def _load_base(
    name: str, folder: Path, device: torch.device, max_context: int | None, dtype: str | None
) -> Served:
    work_alone()
    chosen = getattr(torch, dtype) if dtype else None
    model = load_model(name, folder, device, max_context=max_context, dtype=chosen)
    model.rows = shapes_for_rows(model)
    return Served(name, model, None, default_stop_token_ids(folder))


def _load_tokenizer(folder: Path) -> Tokenizer:
    """From tokenizer.json alone, as training reads it, so that both see the same tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelUnusable(
            "model_unusable",
            "The base model has no tokenizer.json; save its tokenizer with the fast tokenizer.",
        )
    return Tokenizer.from_file(str(path))
