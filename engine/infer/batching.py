"""Whether a model's stock forward can run rows of several sequences: tried, not looked up."""

from collections.abc import Sequence

import structlog
import torch
from transformers import DynamicCache

from engine.infer.batch import SMALLEST_CAPACITY
from engine.infer.errors import ModelUnusable
from engine.infer.lora import Layout, LoraWeights, packed
from engine.infer.model import ServedModel
from engine.infer.slots import Feed, LayerShape, SlotCache, layer_shapes

log = structlog.get_logger()

_LENGTHS = (9, 7)  # of two prompts that share a batch
_FIRST = (6, 2)  # what is fed of each at first: rows are rarely at the same position
_RANK = 2
# The largest difference of a logit, in standard deviations of all of them, taken for rounding.
_ROUNDING = {torch.float32: 2e-3, torch.float64: 2e-3}
_COARSE = 0.2
_CPU_BYTES = 2 << 30  # of attention state, where nobody says how much; taken as it fills


def shapes_for_rows(model: ServedModel) -> tuple[LayerShape, ...] | None:
    """The attention state of the model by layer, where its rows give what each gives alone.

    None, with the reason in the log, for an architecture that cannot share forwards; then each of
    its sequences runs by itself. Call it before the engine runs the model.
    """
    try:
        _check_rotations(model)
        with torch.inference_mode():
            shapes = _shapes(model)
            difference = _difference(model, shapes)
    except Exception as error:  # whatever a stranger's forward makes of rows
        log.warning("engine.not_batched", model=model.name, reason=f"{error!r:.300}")
        return None
    if not difference <= _ROUNDING.get(model.dtype, _COARSE):
        log.warning(
            "engine.not_batched",
            model=model.name,
            reason=f"in a batch its logits are {difference:.2g} standard deviations off",
        )
        return None
    return tuple(shapes)


def kv_tokens(model: ServedModel, kv_bytes: int) -> int:
    """How many positions of this model's attention state `kv_bytes` hold; 0: as many as is sound.

    Raises ModelUnusable where that is less than one context.
    """
    each: int = sum(
        shape.heads * (shape.key_width + shape.value_width) for shape in model.rows or ()
    )
    each *= model.dtype.itemsize
    least = max(model.context_length + 1, SMALLEST_CAPACITY)
    if not each:
        return least  # nothing is kept in rows
    if not kv_bytes:
        return max(_sound_bytes(model.device) // each, least)
    if kv_bytes // each < least:
        raise ModelUnusable(
            "model_unusable",
            f"{kv_bytes} bytes hold the attention state of {kv_bytes // each} tokens, and a "
            f"context of {model.name!r} is {model.context_length} long, which takes "
            f"{least * each}; give it more, or serve it with a shorter context.",
        )
    return kv_bytes // each


def _sound_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    free: int = torch.cuda.mem_get_info(device)[0]
    return free // 2


def _check_rotations(model: ServedModel) -> None:
    """Raises ValueError where a long row would turn the positions of all the others too.

    LongRoPE (Ding et al. 2024, https://arxiv.org/abs/2402.13753) has frequencies for short texts
    and others for long ones, and Transformers chooses by the longest of a batch.
    """
    config = model.part("config").get_text_config(decoder=True)
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(each for each in ropes.values() if isinstance(each, dict))):
        short = rope.get("original_max_position_embeddings", 0)
        if rope.get("rope_type") == "longrope" and short < model.context_length:
            raise ValueError(f"beyond {short} tokens its rotations change, for all rows at once")


def _shapes(model: ServedModel) -> list[LayerShape]:
    cache = model.new_cache()
    model.forward([0], cache, None, keep=1)
    assert isinstance(cache, DynamicCache)
    return layer_shapes(cache)


def _difference(model: ServedModel, shapes: list[LayerShape]) -> float:
    """How far rows with two LoRAs, fed in pieces of two lengths, are from each of them alone."""
    random = torch.Generator().manual_seed(0)
    loras = [_random_lora(model.layers.layout, model.device, random), None]
    prompts = [torch.randint(model.vocabulary, (n,), generator=random).tolist() for n in _LENGTHS]
    capacity = max(_LENGTHS) + 1
    cache = SlotCache(
        shapes, tokens=2 * capacity, max_rows=2, dtype=model.dtype, device=model.device
    )
    found: dict[tuple[int, int], torch.Tensor] = {}  # by row and place
    for begins, ends in (((0, 0), _FIRST), (_FIRST, _LENGTHS)):
        pieces = [ids[b:e] for ids, b, e in zip(prompts, begins, ends, strict=True)]
        places = [(row, i) for row, piece in enumerate(pieces) for i in range(len(piece))]
        feed = _feed(pieces, begins, capacity, model.device)
        made = model.forward_rows(feed, cache, loras, torch.tensor(places, device=model.device))
        found |= {(row, begins[row] + i): own for (row, i), own in zip(places, made, strict=True)}
    differences = []
    for row, (lora, prompt) in enumerate(zip(loras, prompts, strict=True)):
        alone = model.forward(prompt, model.new_cache(), lora, keep=len(prompt)).float()
        rows = torch.stack([found[row, place] for place in range(len(prompt))]).float()
        differences.append((rows - alone).abs().max() / alone.std())
    return float(torch.stack(differences).amax())


def _feed(
    pieces: list[list[int]], begins: Sequence[int], capacity: int, device: torch.device
) -> Feed:
    longest = max(map(len, pieces))
    ids = [piece + [0] * (longest - len(piece)) for piece in pieces]
    places = [
        [*range(begin, begin + len(piece)), *[capacity - 1] * (longest - len(piece))]
        for begin, piece in zip(begins, pieces, strict=True)
    ]
    seen = max(begin + len(piece) for begin, piece in zip(begins, pieces, strict=True))
    at = torch.tensor(places, device=device)
    return Feed(0, torch.tensor(ids, device=device), at, at == capacity - 1, seen)


def _random_lora(layout: Layout, device: torch.device, random: torch.Generator) -> LoraWeights:
    pairs = {}
    for name, (_, n_in, n_out) in layout.places.items():
        lora_a = torch.randn(_RANK, n_in, generator=random) / n_in**0.5
        lora_b = torch.randn(n_out, _RANK, generator=random) / n_in**0.5
        pairs[name] = (lora_a.to(device), lora_b.to(device))
    return packed(pairs, layout, dict.fromkeys(pairs, 1.0))
