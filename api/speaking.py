"""Who answers a request to generate: a base, or adapters of the tenant on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from api.envelope import Body
from api.errors import CannotGenerate, Invalid
from api.paging import known
from api.rendering import base_named, contract_of, renderer_of
from api.scoring import REWARD
from api.services import Services
from engine.bases import BaseModel
from engine.render import Renderer
from jobs.model import Adapter


class WeightedAdapter(Body):
    """One of several adapters whose deltas are added to the base, and how much of it."""

    adapter_id: str = Field(max_length=64)
    weight: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False)


@dataclass(frozen=True)
class Voice:
    """`model` is what the inference server calls it; `weights`, of several adapters on a base."""

    base: BaseModel
    renderer: Renderer
    model: str
    adapters: tuple[Adapter, ...] = ()
    weights: tuple[tuple[str, float], ...] | None = None


def voice_of(
    services: Services,
    tenant_id: str,
    base_name: str | None,
    adapter_id: str | None,
    several: Sequence[WeightedAdapter] | None,
    param: str = "adapter_id",
) -> Voice:
    """A base, one adapter or several; `param` is the field that the one adapter is named in.

    Raises NotFound, Invalid, CannotGenerate, BaseNotAllowed, BaseUnusable and RenderError.
    """
    adapters: tuple[Adapter, ...] = ()
    weights, contract = None, None
    if adapter_id is not None:
        adapters = (speaker(services, tenant_id, adapter_id, param),)
    elif several is not None:
        adapters = _composed(services, tenant_id, several)
        weights = tuple((each.adapter_id, each.weight) for each in several)
    if adapters:
        base_name, contract = base_of(adapters, base_name), contract_of(adapters[0])
    base = base_named(services.bases, base_name)
    return Voice(base, renderer_of(base, contract), adapter_id or base.name, adapters, weights)


def speaker(services: Services, tenant_id: str, adapter_id: str, param: str) -> Adapter:
    """An adapter of the tenant that generates. Raises NotFound and CannotGenerate."""
    adapter = services.store.adapters.get(tenant_id, known("adapter", adapter_id))
    if adapter.kind == REWARD:
        raise CannotGenerate(
            f"Adapter {adapter.id} is a reward model: it scores answers and writes none. Send them "
            "to POST /score, or name an adapter that generates.",
            param=param,
        )
    return adapter


def _composed(
    services: Services, tenant_id: str, several: Sequence[WeightedAdapter]
) -> tuple[Adapter, ...]:
    if services.settings.generator == "vllm":
        text = "vLLM takes one adapter a request; make one of several by POST /adapters/merge."
        raise Invalid(text, param="adapters")
    return tuple(
        speaker(services, tenant_id, each.adapter_id, f"adapters.{number}.adapter_id")
        for number, each in enumerate(several)
    )


def base_of(adapters: Sequence[Adapter], named: str | None) -> str:
    """The base model that they share, which is the one that is named, if one is. Raises Invalid."""
    first = adapters[0]
    for adapter in adapters:
        if named not in (None, adapter.base_model):
            raise Invalid(
                f"Adapter {adapter.id} belongs to base model {adapter.base_model!r}; leave "
                "`base_model` out.",
                param="base_model",
            )
        if adapter.base_model != first.base_model:
            raise Invalid(
                f"Adapter {adapter.id} belongs to base model {adapter.base_model!r} and "
                f"{first.id} to {first.base_model!r}; only adapters of one base can be added up.",
                param="adapters",
            )
    return first.base_model
