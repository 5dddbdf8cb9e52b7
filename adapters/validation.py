"""Whether a folder of files from outside is an adapter that can be served on a base model.

Each defect is an AdapterInvalid with a code of its own; nothing in the folder is ever executed,
unpickled or imported.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from adapters.errors import AdapterInvalid
from adapters.files import TEXT_FILES, WEIGHTS_NAME, check_files
from adapters.peft_config import CONFIG_NAME, HEAD, LoraConfigSummary, check_rank, read_config
from adapters.tensors import TensorInfo, check_finite, read_header, weight_files

_FULL_FILES = TEXT_FILES | {
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
}
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_KEY = re.compile(
    r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)"
    r"\.lora_([AB]\.weight|magnitude_vector)"
)
_MAX_LORA_HEADER_BYTES = 16 << 20
_EMBEDDINGS = {"embed_tokens", "embed_in", "wte", "wpe"}
_TIED = (".embed_tokens.weight", ".wte.weight", "wte.weight")  # what an lm_head is often tied to
_TOKEN_HEAD = "lm_head.weight"
_PEFT_PREFIX = "base_model.model."
_OUTER_NAMES = 2  # how many a base's file may leave out, or have on top, against the module's name

Shape = tuple[int, ...]


def validate_lora(
    folder: Path, base: Mapping[str, Shape], *, max_rank: int, scored: bool = False
) -> LoraConfigSummary:
    """Check a PEFT LoRA folder against the shapes of its base; what it comes to.

    With `scored` it is a reward model's, with a scalar head [1, hidden] beside the matrices.

    Cheap checks come first: the weights themselves are read only when all else is right.
    """
    check_files(folder, TEXT_FILES | {CONFIG_NAME, WEIGHTS_NAME})
    config = read_config(folder, max_rank=max_rank, scored=scored)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise AdapterInvalid("weights_missing", f"there is no {WEIGHTS_NAME}")
    header = read_header(path, max_header_bytes=_MAX_LORA_HEADER_BYTES)
    matrices = _without_head(header, _PEFT_PREFIX, base) if scored else header
    pairs, magnitudes = _pairs(matrices, len(base))
    _check_ranks(pairs, config, max_rank)
    _check_base(pairs, config, base)
    _check_magnitudes(magnitudes, pairs, config)
    check_finite(path, header)
    parameters = sum(math.prod(info.shape) for info in header.values())
    return config.model_copy(update={"modules": len(pairs), "parameters": parameters})


def validate_full(folder: Path, base: Mapping[str, Shape], *, scored: bool = False) -> None:
    """Check a whole fine-tuned model against the shapes of its base; AdapterInvalid.

    With `scored` it has a scalar head [1, hidden] in place of the one for tokens.
    """
    shards = [path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name)]
    check_files(folder, _FULL_FILES.union(shards))
    _check_model_config(folder / "config.json")
    paths = weight_files(folder)
    unnamed = sorted(set(shards) - {path.name for path in paths})
    if unnamed:
        raise AdapterInvalid("unexpected_file", f"{unnamed[0]} is not part of the model")
    headers = [(path, read_header(path)) for path in paths]
    tensors = {name: info for _, header in headers for name, info in header.items()}
    if scored:
        tensors = _without_head(tensors, "", base)
        base = {name: shape for name, shape in base.items() if name != _TOKEN_HEAD}
    _check_same_tensors({name: info.shape for name, info in tensors.items()}, base)
    for path, header in headers:
        check_finite(path, header)


def _without_head(
    tensors: Mapping[str, TensorInfo], prefix: str, base: Mapping[str, Shape]
) -> dict[str, TensorInfo]:
    """What is below a reward model's head, which must be there and fit the base."""
    name = f"{prefix}{HEAD}.weight"
    if name not in tensors:
        raise AdapterInvalid("reward_head_missing", f"there is no {name!r}, which scores")
    widths = {shape[1] for known, shape in base.items() if known.endswith(_TIED)}
    shape = tensors[name].shape
    if len(shape) != 2 or shape[0] != 1 or shape[1] not in widths:
        text = f"{name!r} is {list(shape)}; a head is one row as wide as the base's embeddings"
        raise AdapterInvalid("wrong_shape", text)
    return {known: info for known, info in tensors.items() if known != name}


def _pairs(
    header: Mapping[str, TensorInfo], base_tensors: int
) -> tuple[dict[str, tuple[tuple[int, int], tuple[int, int]]], dict[str, Shape]]:
    """A [r, in] and B [out, r] by module name, and DoRA's magnitudes."""
    if len(header) > 3 * base_tensors:
        text = f"{len(header)} tensors are more than a base of {base_tensors} tensors can take"
        raise AdapterInvalid("too_many_tensors", text)
    halves: dict[str, dict[str, tuple[int, int]]] = {}
    magnitudes: dict[str, Shape] = {}
    for name, info in header.items():
        module, part = _parse_name(name)
        if part == "magnitude_vector":
            magnitudes[module] = info.shape
            continue
        if len(info.shape) != 2 or 0 in info.shape:
            raise AdapterInvalid("wrong_shape", f"{name!r} is no matrix: {list(info.shape)}")
        halves.setdefault(module, {})[part[0]] = (info.shape[0], info.shape[1])
    for module, found in halves.items():
        if len(found) != 2:
            text = f"{module!r} has lora_{next(iter(found))} and not the other of the pair"
            raise AdapterInvalid("lora_pair_incomplete", text)
    if not halves:
        raise AdapterInvalid("weights_missing", f"{WEIGHTS_NAME} has no tensors")
    return {module: (found["A"], found["B"]) for module, found in halves.items()}, magnitudes


def _parse_name(name: str) -> tuple[str, str]:
    match = _KEY.fullmatch(name)
    if "lora_embedding_" in name or (match and match[1].rpartition(".")[2] in _EMBEDDINGS):
        text = "LoRA on embeddings is not served; leave them out of `target_modules`"
        raise AdapterInvalid("embedding_lora_unsupported", text)
    if match:
        return match[1], match[2]
    text = f"{name[:100]!r} names no LoRA weight; expected base_model.model.*.lora_A.weight"
    raise AdapterInvalid("odd_tensor_name", text)


def _check_magnitudes(
    magnitudes: Mapping[str, Shape],
    pairs: Mapping[str, tuple[tuple[int, int], tuple[int, int]]],
    config: LoraConfigSummary,
) -> None:
    """DoRA has one magnitude for each output of each of its modules; plain LoRA has none."""
    expected = {module: (b[0],) for module, (_, b) in pairs.items()} if config.use_dora else {}
    for module in sorted(magnitudes.keys() - expected.keys()):
        text = f"{module!r} has DoRA's magnitudes, but use_dora does not say so"
        raise AdapterInvalid("config_mismatch", text)
    for module, shape in expected.items():
        if module not in magnitudes:
            text = f"use_dora is set, but {module!r} has no lora_magnitude_vector"
            raise AdapterInvalid("dora_magnitude_missing", text)
        if magnitudes[module] != shape:
            text = f"{module!r} has magnitudes {list(magnitudes[module])}, not {list(shape)}"
            raise AdapterInvalid("wrong_shape", text)


def _check_ranks(
    pairs: Mapping[str, tuple[tuple[int, int], tuple[int, int]]],
    config: LoraConfigSummary,
    max_rank: int,
) -> None:
    for module, (a, b) in pairs.items():
        check_rank(max(a[0], b[1]), max_rank)
        if not config.targets(module):
            text = f"there are weights for {module!r}, which target_modules does not name"
            raise AdapterInvalid("config_mismatch", text)
        if a[0] != b[1] or a[0] != config.rank_of(module):
            text = f"{module!r} has A {list(a)} and B {list(b)} at rank {config.rank_of(module)}"
            raise AdapterInvalid("wrong_shape", text)


def _check_base(
    pairs: Mapping[str, tuple[tuple[int, int], tuple[int, int]]],
    config: LoraConfigSummary,
    base: Mapping[str, Shape],
) -> None:
    """Every pair must fit its module. When none does, the adapter belongs to another base."""
    problems = []
    for module, (a, b) in pairs.items():
        weight = _weight_of(module, base)
        out_in = weight[::-1] if weight and config.fan_in_fan_out else weight
        if weight is None or len(weight) != 2:
            text = f"the base has no linear layer {module!r}"
            problems.append(AdapterInvalid("module_not_in_base", text))
        elif (b[0], a[1]) != out_in:
            text = f"{module!r} has A {list(a)} and B {list(b)}; the base's is {list(weight)}"
            problems.append(AdapterInvalid("wrong_shape", text))
    if problems and len(problems) == len(pairs):
        text = f"no weight fits this base model, the adapter was made for another: {problems[0]}"
        raise AdapterInvalid("wrong_base", text)
    if problems:
        raise problems[0]


def _weight_of(module: str, base: Mapping[str, Shape]) -> Shape | None:
    """The shape of a module's weight in the base's file, which may name it a little otherwise."""
    parts = module.split(".")
    names = [".".join([*parts[at:], "weight"]) for at in range(min(_OUTER_NAMES + 1, len(parts)))]
    for name in names:
        if name in base:
            return base[name]
    for name in names[:-1]:
        longer = [shape for known, shape in base.items() if known.endswith("." + name)]
        if len(longer) == 1:
            return longer[0]
    if parts[-1] == "lm_head":
        return next((shape for known, shape in base.items() if known.endswith(_TIED)), None)
    return None


def _check_model_config(path: Path) -> None:
    if not path.is_file():
        raise AdapterInvalid("config_missing", f"there is no {path.name}")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        text = f"{path.name} is not JSON ({str(error)[:100]})"
        raise AdapterInvalid("config_malformed", text) from error
    if not isinstance(config, dict):
        raise AdapterInvalid("config_malformed", f"{path.name} is not a JSON object")
    if "auto_map" in config:
        text = f"{path.name} has an auto_map: the model needs code of its own, which is never run"
        raise AdapterInvalid("model_needs_code", text)


def _check_same_tensors(tensors: Mapping[str, Shape], base: Mapping[str, Shape]) -> None:
    tied = {_TOKEN_HEAD}  # in one file, and left out of the other
    differing = (tensors.keys() ^ base.keys()) - tied
    shared = tensors.keys() & base.keys()
    wrong = [name for name in sorted(shared) if tensors[name] != base[name]]
    if differing or len(wrong) == len(shared):
        first = min(differing, default=wrong[0] if wrong else "nothing in common")
        text = f"the model is not a fine-tuned version of this base: {first[:100]!r}"
        raise AdapterInvalid("wrong_base", text)
    if wrong:
        text = f"{wrong[0]!r} is {list(tensors[wrong[0]])}, the base's {list(base[wrong[0]])}"
        raise AdapterInvalid("wrong_shape", text)
