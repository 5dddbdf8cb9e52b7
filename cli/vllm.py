"""Luthier's plugins in vLLM's process: `VLLM_PLUGINS=luthier` loads both.

`register` puts the resolver where vLLM looks for it, in each of vLLM's processes. `Keeper` runs in
the one that answers HTTP, once its model is known.
"""

import asyncio
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.failure import CommandFailed

if TYPE_CHECKING:
    from adapters.vllm_resolver import Served
    from engine.bases import BaseModel
    from jobs.settings import Settings

NAME = "luthier"


def register() -> None:
    """vLLM's general plugin. Raises CommandFailed where vLLM would not ask the resolver.

    vLLM loads every plugin it finds unless it is told which; then this one stays out of its way.
    """
    from vllm import envs

    if NAME not in (envs.VLLM_PLUGINS or ()):
        return
    if not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise CommandFailed(
            "vLLM asks Luthier for adapters only with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; set it. "
            "The endpoints that it opens are refused by Luthier's plugin."
        )
    from vllm.lora.resolver import LoRAResolverRegistry

    from adapters.vllm_resolver import Resolver
    from cli.vllm_cpu import repair

    repair()
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, Resolver())


class Keeper:
    """vLLM's endpoint plugin, which adds no route: it connects the resolver, and closes the routes
    by which others could load adapters from any folder.
    """

    name = NAME
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Nothing is attached."""

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Raises CommandFailed where this vLLM does not serve a base of LUTHIER_BASE_MODELS."""
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest
        from vllm.lora.resolver import LoRAResolverRegistry

        from adapters.cache import AdapterCache
        from adapters.vllm_resolver import Shelf
        from adapters.vllm_sweep import Sweep
        from cli.configuration import read_settings
        from cli.roles import check_names
        from jobs.opening import open_objects

        check_names()
        settings, models = read_settings(), state.openai_serving_models
        served = await asyncio.to_thread(served_base, settings, models, engine_client.vllm_config)
        objects, budget_bytes = open_objects(settings), settings.adapter_cache_bytes
        root = settings.data_dir / "vllm-adapters"
        cache = await asyncio.to_thread(
            AdapterCache, objects, root, budget_bytes, in_use_s=float("inf")
        )
        unload = models.unload_lora_adapter
        models.load_lora_adapter = models.unload_lora_adapter = refuse
        LoRAResolverRegistry.get_resolver(NAME).shelf = Shelf(cache, served)
        sweep = Sweep(
            objects,
            cache,
            budget_bytes,
            lambda: models.lora_requests,
            lambda name: unload(UnloadLoRAAdapterRequest(lora_name=name)),
        )
        state.luthier_sweep = asyncio.create_task(sweep.run())  # kept, or it would be collected


async def refuse(request: Any, base_model_name: str | None = None) -> Any:
    """vLLM's answer to those who would load or unload an adapter by hand."""
    from vllm.entrypoints.serve import create_error_response

    return create_error_response(
        "Adapters are loaded by their ids when they are first asked for, and by no other way.",
        "Forbidden",
        HTTPStatus.FORBIDDEN,
    )


def served_base(settings: "Settings", models: Any, vllm_config: Any) -> "Served":
    """The base of the list by whose name vLLM serves. Raises CommandFailed, EngineError."""
    from adapters.tensors import base_shapes
    from adapters.vllm_resolver import Served
    from engine.bases import BaseCatalogue

    if vllm_config.lora_config is None:
        raise CommandFailed("Start vLLM with --enable-lora, or it can serve no adapter.")
    names = [path.name for path in models.base_model_paths]
    known = [name for name in names if name in settings.base_models]
    if not known:
        raise CommandFailed(
            f"vLLM serves its model as {', '.join(names)}, which is none of LUTHIER_BASE_MODELS "
            f"({', '.join(settings.base_models)}); give it --served-model-name."
        )
    base = BaseCatalogue(settings.base_models).find(known[0], weights=True)
    config = vllm_config.model_config
    if not _is_the_same(base, settings.base_models[base.name], config.model, config.revision):
        raise CommandFailed(
            f"vLLM has loaded {config.model}, which is not what LUTHIER_BASE_MODELS calls "
            f"{base.name!r}; start it with --model {base.path}."
        )
    rank = int(vllm_config.lora_config.max_lora_rank)
    return Served(base.name, base.revision, base_shapes(base.path), rank)


def _is_the_same(base: "BaseModel", source: str, model: str, revision: str | None) -> bool:
    """Whether vLLM's --model and --revision are this base, to the byte."""
    from engine.bases import folder_revision

    folder = Path(model)
    if not folder.is_dir():
        return source == f"{model}@{revision}"
    return folder.samefile(base.path) or folder_revision(folder) == base.revision
