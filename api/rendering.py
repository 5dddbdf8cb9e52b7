"""Renderers of bases and adapters, kept because a tokenizer takes long to load."""

from functools import lru_cache
from pathlib import Path

from engine.bases import BaseCatalogue, BaseModel
from engine.generation_prompt import prompt_warnings
from engine.render import RenderContract, Renderer, load_renderer
from jobs.model import Adapter

KEPT = 8  # a tokenizer of 128k tokens takes some 50 MB; adapters of one base share one


def base_named(bases: BaseCatalogue, name: str | None) -> BaseModel:
    """A base of the list, the first when no name is given. Raises BaseNotAllowed, BaseUnusable."""
    return bases.find(name if name is not None else next(iter(bases.names), ""))


def renderer_of(base: BaseModel, contract: RenderContract | None = None) -> Renderer:
    """How a base writes, or how an adapter with its own contract does. Raises RenderError."""
    text = None if contract is None else contract.model_dump_json()
    return _load(base.path, base.revision, text)


def contract_of(adapter: Adapter) -> RenderContract:
    """How the adapter's own training rendered."""
    return RenderContract.model_validate(adapter.manifest["contract"])


def warnings_of(base: BaseModel) -> tuple[str, ...]:
    """What a client should know of how a base writes. Raises RenderError."""
    return _warnings(base.path, base.revision)


@lru_cache(maxsize=64)
def _warnings(path: Path, revision: str) -> tuple[str, ...]:
    return prompt_warnings(_load(path, revision, None).contract)


@lru_cache(maxsize=KEPT)
def _load(path: Path, revision: str, contract: str | None) -> Renderer:
    given = None if contract is None else RenderContract.model_validate_json(contract)
    return load_renderer(path, given)
