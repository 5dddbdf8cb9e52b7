"""How the numbers of a LoRA's file go into memory: checked once for files that begin alike."""

import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from engine.infer.lora import Layout, LoraWeights, Pairs, packed
from engine.infer.packing import COLUMNS, Packer, Table
from engine.infer.pages import zeros
from engine.infer.peft_folder import CONFIG_NAME, refused
from engine.infer.weights_file import Index, Place

_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB]\.weight|magnitude_vector)"
)
_OPTIONS = ("use_dora", "use_rslora", "lora_alpha", "alpha_pattern")
_MAX_PLANS = 32
_PARTS = {"A", "B"}
_DORA_PARTS = {"A", "B", "magnitude_vector"}
# PEFT reads the keys of alpha_pattern as regular expressions, which a stranger's file must not be.
_PLAIN_NAME = re.compile(r"[\w.]+")


class Layer(NamedTuple):
    """Where a layer's A [r, in] and B [out, r] are, and what B is multiplied by."""

    a: Place
    b: Place
    scaling: float
    magnitude: Place | None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """By module, where in a file its LoRA is; all of it fits the base. `table`: for a Packer.

    ranks: by module, and `rank` the largest.
    """

    layers: Mapping[str, Layer]
    ranks: Mapping[str, int]
    rank: int
    table: Table | None

    def pack(
        self,
        numbers: torch.Tensor,
        layout: Layout,
        packer: Packer | None,
        dtype: torch.dtype,
    ) -> LoraWeights:
        """The LoRA, packed in this dtype; without a packer, or where it has no room, in float32."""
        if packer is None or self.table is None or numbers.device.type != "cpu":
            pairs = {
                name: (each.a.of(numbers), each.b.of(numbers)) for name, each in self.layers.items()
            }
            scalings = {name: each.scaling for name, each in self.layers.items()}
            return packed(pairs, layout, scalings)
        whole = zeros(self.rank * layout.width, dtype, numbers.device)
        packer.pack(numbers.float(), self.table, whole)
        return LoraWeights(Pairs(whole, layout, self.ranks), self.rank, packed=whole)


class Plans:
    """The plans for one base, the last of them kept. shapes: (in, out) of its linear layers."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], layout: Layout) -> None:
        self._shapes, self._layout = shapes, layout
        self._kept = lru_cache(maxsize=_MAX_PLANS)(self._made)

    def find(self, config: Mapping[str, Any], index: Index, beside: Set[str]) -> Plan:
        """For a file with this index, but for those `beside`. Raises AdapterRefused."""
        # Of the configuration, what is planned with: the rest may differ between adapters.
        options = json.dumps({option: config[option] for option in _OPTIONS if option in config})
        make = self._kept if index.kept else self._made
        return make(index, frozenset(beside), options)

    def _made(self, index: Index, beside: frozenset[str], options: str) -> Plan:
        places = {name: each for name, each in index.places.items() if name not in beside}
        return plan_for(json.loads(options), places, index.numbers, self._shapes, self._layout)


def plan_for(
    config: Mapping[str, Any],
    places: Mapping[str, Place],
    numbers: int,
    shapes: Mapping[str, tuple[int, int]],
    layout: Layout,
) -> Plan:
    """For a file with these tensors, of so many numbers, and a base with these linear layers.

    Raises AdapterRefused.
    """
    found: dict[str, dict[str, Place]] = {}
    for key, place in places.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise refused(f"tensor {key!r} is no part of a linear layer's LoRA")
        if match["module"] not in shapes:
            raise refused(f"{match['module']!r} is not a linear layer of the base model")
        part = match["part"].removesuffix(".weight")
        found.setdefault(match["module"], {})[part] = place
    if not found:
        raise refused("it has no weights")
    layers, ranks = {}, {}
    for name, parts in found.items():
        ranks[name] = _checked_rank(name, parts, shapes[name], config)
        scaling = _scaling(name, ranks[name], config)
        layers[name] = Layer(parts["A"], parts["B"], scaling, parts.get("magnitude_vector"))
    rank = max(ranks.values())
    table = None
    if layout.places.keys() >= layers.keys():
        table = _table(layers, ranks, numbers, layout)
    return Plan(layers, ranks, rank, table)


def _table(
    layers: Mapping[str, Layer], ranks: Mapping[str, int], numbers: int, layout: Layout
) -> Table:
    rank = max(ranks.values())
    rows = []
    for name, layer in layers.items():
        offset, n_in, n_out = layout.places[name]
        rows.append((layer.a.first, layer.b.first, rank * offset, ranks[name], n_in, n_out))
    scalings = torch.tensor([layer.scaling for layer in layers.values()], dtype=torch.float32)
    table = torch.tensor(rows).view(-1, COLUMNS)
    return Table(table, scalings, numbers, rank * layout.width)


def _checked_rank(
    name: str,
    parts: Mapping[str, Place],
    shape: tuple[int, int],
    config: Mapping[str, Any],
) -> int:
    expected = _DORA_PARTS if config.get("use_dora") else _PARTS
    if parts.keys() != expected:
        has, needs = (" and ".join(sorted(names)) for names in (parts, expected))
        raise refused(f"{name!r} has {has} where {needs} belong")
    lora_a, lora_b = parts["A"].shape, parts["B"].shape
    rank = lora_a[0] if lora_a else 0
    if lora_a != (rank, shape[0]) or lora_b != (shape[1], rank):
        raise refused(
            f"{name!r} has A {list(lora_a)} and B {list(lora_b)}; "
            f"the base's layer is {shape[0]} to {shape[1]}"
        )
    magnitude = parts.get("magnitude_vector")
    if magnitude is not None and magnitude.shape != (shape[1],):
        raise refused(f"{name!r} has {list(magnitude.shape)} magnitudes for {shape[1]} outputs")
    return rank


def _scaling(name: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / r; rsLoRA (https://arxiv.org/abs/2312.03732): alpha / sqrt(r)."""
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if not _PLAIN_NAME.fullmatch(pattern):
            raise refused(f"alpha_pattern {pattern!r} is not the plain name of a layer")
        if name == pattern or name.endswith("." + pattern):
            alpha = own
            break
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not rank:
        raise refused(f"{CONFIG_NAME} has no usable lora_alpha for {name!r}")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
