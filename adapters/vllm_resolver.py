"""vLLM's LoRA resolver over the object store: an adapter by its id, fetched and checked.

vLLM is imported where its own objects are made, so this module is light and has tests without it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog

from adapters.cache import AdapterCache
from adapters.errors import AdapterCorrupt, AdapterError, AdapterInvalid, AdapterMissing
from adapters.manifest import MANIFEST_NAME, Manifest, decode
from adapters.validation import validate_lora
from storage.objects import StorageError

log = structlog.get_logger()

NAME = "luthier"  # in vLLM's registry, and in VLLM_PLUGINS


@dataclass(frozen=True)
class Served:
    """The base that vLLM has loaded, and the highest rank it takes. `tensors`: shapes by name."""

    name: str
    revision: str
    tensors: Mapping[str, tuple[int, ...]]
    max_lora_rank: int


class Shelf:
    """Folders of adapters that vLLM can serve on one base."""

    def __init__(self, cache: AdapterCache, served: Served) -> None:
        self._cache, self._served = cache, served

    def folder_of(self, adapter_id: str) -> Path:
        """The local folder of an adapter, checked against its manifest and against the base.

        AdapterMissing for whatever is no id of a published adapter; AdapterCorrupt; AdapterInvalid
        for one that vLLM cannot serve, with the reason; StorageError.
        """
        folder = self._cache.path(adapter_id)
        manifest = decode((folder / MANIFEST_NAME).read_bytes())
        self._check_base(manifest)
        _check_kind(manifest)
        rank = self._served.max_lora_rank
        summary = validate_lora(folder, self._served.tensors, max_rank=rank)
        if summary.use_dora:
            raise AdapterInvalid("dora_unsupported", f"{_subject(manifest)} is a DoRA; {_SERVES}")
        return folder

    def _check_base(self, manifest: Manifest) -> None:
        ours = self._served
        if manifest.base_model != ours.name:
            raise AdapterInvalid(
                "wrong_base",
                f"{_subject(manifest)} belongs to base model {manifest.base_model!r}, and this "
                f"vLLM serves {ours.name!r}; ask the one that serves its base.",
            )
        if manifest.base_revision != ours.revision:
            raise AdapterInvalid(
                "base_model_changed",
                f"{_subject(manifest)} was trained on another revision of {ours.name!r} than this "
                "vLLM has loaded; train it again, or serve the revision it was trained on.",
            )


_SERVES = "vLLM serves plain LoRA and rsLoRA; use Luthier's own inference server for it."


def _check_kind(manifest: Manifest) -> None:
    if manifest.kind != "lora":
        text = f"{_subject(manifest)} is of kind {manifest.kind!r}; {_SERVES}"
        raise AdapterInvalid("adapter_kind_unsupported", text)


def _subject(manifest: Manifest) -> str:
    return f"Adapter {manifest.adapter_id}"


class Resolver:
    """What vLLM asks for a model that it does not know yet (vllm.lora.resolver.LoRAResolver).

    vLLM asks once for each name that it serves. Its answer to None is a 404.
    """

    def __init__(self) -> None:
        self.shelf: Shelf | None = None  # until the server that will ask has started

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """vLLM's LoRARequest for an adapter id; None where there is no such adapter.

        Raises what vLLM answers as 422 (refused), 503 (no storage) and 500 (not set up).
        """
        from vllm.exceptions import (
            GracefulHTTPError,
            VLLMServerError,
            VLLMUnprocessableEntityError,
        )
        from vllm.lora.request import LoRARequest

        if self.shelf is None:
            raise VLLMServerError("Luthier's resolver has no base model; see vLLM's log.")
        try:
            folder = await asyncio.to_thread(self.shelf.folder_of, lora_name)
        except AdapterMissing:
            return None
        except (AdapterInvalid, AdapterCorrupt) as error:
            log.warning("adapter.refused", adapter=lora_name, reason=str(error))
            raise VLLMUnprocessableEntityError(str(error)) from error
        except AdapterError as error:
            raise GracefulHTTPError(str(error), HTTPStatus.SERVICE_UNAVAILABLE) from error
        except StorageError as error:  # its text may name a tenant
            log.warning("adapter.unavailable", adapter=lora_name, error=type(error).__name__)
            raise GracefulHTTPError(
                "The adapter could not be fetched just now; try again soon.",
                HTTPStatus.SERVICE_UNAVAILABLE,
            ) from error
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))  # id: vLLM's
