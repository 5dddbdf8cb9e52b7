"""Brings adapters from `fetch` into memory, in threads of its own."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch

from engine.infer.batching import shapes_for_rows
from engine.infer.errors import (
    AdapterNotFound,
    AdapterRefused,
    AdapterUnavailable,
    ModelUnusable,
)
from engine.infer.folder import (
    Probe,
    ScoreProbe,
    manifest_digest,
    model_bytes,
    read_manifest,
)
from engine.infer.head import ScoreHead, load_headed_lora, load_headed_model
from engine.infer.lora import LoraWeights
from engine.infer.lora_folder import load_lora
from engine.infer.model import ServedModel, load_model
from engine.infer.peft_folder import CONFIG_NAME
from engine.infer.threads import work_alone
from engine.infer.virtual_tokens import VirtualTokens

log = structlog.get_logger()

Fetch = Callable[[str], Path]
_Result = TypeVar("_Result")
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Served:
    """What to run: the base (alone, with LoRA, behind virtual tokens) or a model of its own.

    With a head it scores, and without one it generates.
    """

    name: str
    model: ServedModel
    lora: LoraWeights | None
    stop_token_ids: frozenset[int]
    virtual_tokens: VirtualTokens | None = None
    head: ScoreHead | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter that was fetched: what it is, how large, and how to check it.

    `whole`: a model of its own, which shares nothing with the base. `digest` is that of its
    manifest, which has those of its files.
    """

    kind: str
    digest: str
    whole: bool
    size_bytes: int
    stop_token_ids: frozenset[int]
    pad_token_id: int | None
    probes: tuple[Probe, ...]
    scores: tuple[ScoreProbe, ...]


class Loader:
    """Reads adapters of one base. `fetch` may be slow and is called from several threads."""

    def __init__(self, fetch: Fetch, base: Served, *, max_context: int | None) -> None:
        self._fetch, self._base, self._max_context = fetch, base, max_context
        self._threads = ThreadPoolExecutor(
            _THREADS, thread_name_prefix="luthier-load", initializer=work_alone
        )
        self._one_model = threading.Lock()  # Transformers sets process-wide state while it loads

    async def fetch(self, name: str) -> Path:
        """The adapter's folder; it may go away later, so read it at once."""
        return await self._run(lambda: self._fetched(name))

    async def find(self, name: str) -> Found:
        """Raises AdapterNotFound, AdapterRefused, AdapterUnavailable."""
        return await self._run(lambda: self._found(name))

    async def read(self, name: str, found: Found) -> Served:
        """Raises the same. Fetches anew, because finding room may have taken long."""
        return await self._run(lambda: self._served(name, found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _fetched(self, name: str) -> Path:
        try:
            return self._fetch(name)
        except (AdapterNotFound, AdapterRefused, AdapterUnavailable):
            raise
        except Exception as error:  # the edge to whoever keeps the adapters: any failure may pass
            log.exception("adapter.fetch_failed", adapter_id=name)
            raise AdapterUnavailable(
                f"Adapter {name!r} could not be fetched; try again, and see the log if it stays so."
            ) from error

    def _found(self, name: str) -> Found:
        folder = self._fetched(name)
        manifest = read_manifest(folder)
        stops = manifest.contract.stop_token_ids
        whole = manifest.kind == "full"
        if manifest.kind == "reward":
            whole = not (folder / CONFIG_NAME).is_file()
        # A LoRA is kept in float32, whatever the base is in, or in half of that: see Kernel.
        each = self._base.model.dtype.itemsize if whole else torch.float32.itemsize
        return Found(
            kind=manifest.kind,
            digest=manifest_digest(folder),
            whole=whole,
            size_bytes=model_bytes(folder, each),
            stop_token_ids=self._base.stop_token_ids if stops is None else frozenset(stops),
            pad_token_id=manifest.contract.pad_token_id,
            probes=manifest.probes,
            scores=manifest.scores,
        )

    def _served(self, name: str, found: Found) -> Served:
        folder, base = self._fetched(name), self._base.model
        if found.whole:
            return self._whole(name, folder, found)
        if found.kind == "reward":
            lora, head = load_headed_lora(folder, base, found.pad_token_id)
            return Served(name, base, lora, found.stop_token_ids, head=head)
        if found.kind == "lora":
            lora = load_lora(folder, base.layers, base.device)
            return Served(name, base, lora, found.stop_token_ids)
        virtual_tokens = base.load_virtual_tokens(folder, found.kind)
        return Served(name, base, None, found.stop_token_ids, virtual_tokens)

    def _whole(self, name: str, folder: Path, found: Found) -> Served:
        base, head = self._base.model, None
        options: dict[str, Any] = {"max_context": self._max_context, "dtype": base.dtype}
        try:
            with self._one_model:
                if found.kind == "reward":
                    model, head = load_headed_model(
                        name, folder, base.device, found.pad_token_id, **options
                    )
                else:
                    model = load_model(name, folder, base.device, **options)
                    model.rows = shapes_for_rows(model)
        except ModelUnusable as error:
            code = "model_needs_code" if error.code == "model_needs_code" else "adapter_invalid"
            raise AdapterRefused(code, str(error)) from error
        return Served(name, model, None, found.stop_token_ids, head=head)
