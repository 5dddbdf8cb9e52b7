"""Several adapters in one request: the base with the weighted sum of what they add to it."""

from collections.abc import Sequence

from engine.infer.errors import RequestInvalid
from engine.infer.loader import Served
from engine.infer.lora import LoraWeights, combined


def together(base: Served, parts: Sequence[Served], weights: Sequence[float]) -> Served:
    """The base with all of them; it ends where the first of them does. Raises RequestInvalid."""
    if base.lora is not None or base.head is not None or base.virtual_tokens is not None:
        raise _refused(f"{base.name!r} is an adapter itself; let `model` name the base model.")
    loras = [_additive(base, part) for part in parts]
    weighted = list(zip(loras, weights, strict=True))
    lora = combined(weighted, base.model.layers.layout)
    names = ", ".join(
        f"{part.name}*{weight!r}" for part, weight in zip(parts, weights, strict=True)
    )
    return Served(names, base.model, lora, parts[0].stop_token_ids)


def _additive(base: Served, part: Served) -> LoraWeights:
    if part.model is not base.model:
        raise _refused(f"{part.name!r} is a model of its own, or of another base than the rest.")
    if part.head is not None:
        raise _refused(f"{part.name!r} is a reward model, which adds nothing to what is generated.")
    if part.lora is None:
        raise _refused(f"{part.name!r} adds nothing to the base's weights; only LoRAs do.")
    if part.lora.gains:
        raise _refused(f"{part.name!r} is a DoRA, which rescales the base's weights.")
    return part.lora


def _refused(reason: str) -> RequestInvalid:
    return RequestInvalid(
        f"These adapters cannot be added up: {reason}",
        param="adapters",
        code="adapters_not_additive",
        status=422,
    )
