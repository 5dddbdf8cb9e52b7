"""Safetensors files read with suspicion: the header checked in full, weights checked in pieces.

The format (https://github.com/huggingface/safetensors): the header's length in eight bytes, little
end first; the header as JSON, which says where each tensor is; then the tensors' bytes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from adapters.errors import AdapterError, AdapterInvalid

MAX_HEADER_BYTES = 100_000_000  # what the safetensors library itself takes
_MAX_DIMENSIONS = 8
_PIECE_BYTES = 4 << 20

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16


class TensorInfo(NamedTuple):
    """A tensor's type, its shape, and where in the file its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> dict[str, TensorInfo]:
    """All tensors of a file, in the order of their bytes, which they must fill exactly.

    AdapterInvalid: bad_safetensors, header_too_large, tensors_overlap, hole_between_tensors,
    trailing_bytes.
    """
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        header = _parse(path.name, _header_bytes(path.name, file, size_bytes, max_header_bytes))
        begin = file.tell()
    infos = [(name, _info(path.name, name, entry, begin)) for name, entry in header.items()]
    infos.sort(key=lambda item: (item[1].start, item[1].end))
    _check_layout(path.name, infos, begin, size_bytes)
    return dict(infos)


def check_finite(path: Path, header: Mapping[str, TensorInfo]) -> None:
    """Read every weight: AdapterInvalid nan_weights or inf_weights, with the tensor named."""
    with path.open("rb") as file:
        for name, info in header.items():
            for numbers in _pieces(path.name, file, name, info):
                _check_piece(path.name, name, info.dtype, numbers)


def base_shapes(model_dir: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a base model's folder, from its headers alone. AdapterError."""
    try:
        return shapes_in(model_dir)
    except (OSError, AdapterInvalid) as error:
        raise AdapterError(
            f"the weights of base model {model_dir.name!r} cannot be read ({error}); "
            "the operator should download it again"
        ) from error


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a folder's weight files; AdapterInvalid."""
    return {
        name: info.shape
        for path in weight_files(folder)
        for name, info in read_header(path).items()
    }


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the shards its index names; AdapterInvalid."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise AdapterInvalid("weights_missing", f"there is no {whole.name} and no {index.name}")
    weight_map = _parse(index.name, index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict):
        raise AdapterInvalid("config_malformed", f"{index.name} has no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    odd = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if odd:
        raise AdapterInvalid(
            "weights_missing", f"{index.name} names {odd[0]!r}, which is not there"
        )
    return [folder / name for name in names]


def _header_bytes(name: str, file: BinaryIO, size_bytes: int, max_header_bytes: int) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    if file.read(1) != b"{":
        raise _bad(name, "there is no header in it")
    file.seek(8)
    if length > max_header_bytes:
        text = f"{name} declares a header of {length} bytes; the limit is {max_header_bytes}"
        raise AdapterInvalid("header_too_large", text)
    if length > size_bytes - 8:
        raise _bad(name, "it ends inside its header")
    return file.read(length)


def _parse(name: str, data: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _bad(name, f"its header is not JSON ({str(error)[:100]})") from error
    if not isinstance(parsed, dict):
        raise _bad(name, "its header is not a JSON object")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(name, "its __metadata__ is not a map of strings")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name is there twice")
    return unique


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _info(file_name: str, name: str, entry: Any, begin: int) -> TensorInfo:
    about = f"tensor {name[:100]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(file_name, f"{about} needs dtype, shape and data_offsets and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _bad(file_name, f"{about} has the unknown dtype {str(dtype)[:20]!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _bad(file_name, f"{about} has no sane shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _bad(file_name, f"{about} has no sane data_offsets")
    start, end = offsets
    if end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _bad(file_name, f"{about} has {end - start} bytes, which is not what its shape needs")
    return TensorInfo(dtype, tuple(shape), begin + start, begin + end)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 48
        for size in value
    )


def _check_layout(
    file_name: str, infos: list[tuple[str, TensorInfo]], begin: int, size_bytes: int
) -> None:
    at = begin
    for name, info in infos:
        if info.start < at:
            text = f"{file_name}: tensor {name[:100]!r} overlaps the one before it"
            raise AdapterInvalid("tensors_overlap", text)
        if info.start > at:
            text = f"{file_name} has {info.start - at} unused bytes before {name[:100]!r}"
            raise AdapterInvalid("hole_between_tensors", text)
        at = info.end
    if at > size_bytes:
        raise _bad(file_name, f"it ends {at - size_bytes} bytes before its last tensor does")
    if at < size_bytes:
        text = f"{file_name} has {size_bytes - at} bytes after its last tensor"
        raise AdapterInvalid("trailing_bytes", text)


def _pieces(
    file_name: str, file: BinaryIO, name: str, info: TensorInfo
) -> Iterator["np.ndarray[Any, np.dtype[Any]]"]:
    if info.dtype not in _FLOATS:
        text = f"{file_name}: tensor {name[:100]!r} is {info.dtype}; use F32, F16, BF16 or F64"
        raise AdapterInvalid("dtype_unsupported", text)
    file.seek(info.start)
    left = info.end - info.start
    while left:
        data = file.read(min(left, _PIECE_BYTES))
        if not data:
            raise _bad(file_name, "it got shorter while it was read")
        left -= len(data)
        yield np.frombuffer(data, _FLOATS[info.dtype])


def _check_piece(
    file_name: str, name: str, dtype: str, numbers: "np.ndarray[Any, np.dtype[Any]]"
) -> None:
    if dtype == "BF16":  # the upper half of a float32
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    if np.isfinite(numbers).all():
        return
    code, what = ("nan_weights", "NaN") if np.isnan(numbers).any() else ("inf_weights", "infinite")
    text = f"{file_name}: tensor {name!r} has {what} weights; the training that made it diverged"
    raise AdapterInvalid(code, text)


def _bad(file_name: str, what: str) -> AdapterInvalid:
    return AdapterInvalid("bad_safetensors", f"{file_name} is not a safetensors file: {what}")
