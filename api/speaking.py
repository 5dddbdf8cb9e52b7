"""The adapters that a request to generate names, and the base below them."""

from collections.abc import Sequence

from api.errors import CannotGenerate, Invalid
from api.paging import known
from api.scoring import REWARD
from api.services import Services
from jobs.model import Adapter


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
