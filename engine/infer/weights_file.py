"""A safetensors file: what its header says, read once for all files that begin alike.

Adapters of one base mostly have the same tensors at the same places. Hundreds of small tensors
take the library several times as long as their numbers take to be read.
"""

import hashlib
import json
import mmap
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_KNOWN, _MAX_KNOWN_BYTES = 32, 512 << 10  # headers, and the longest of them
_MAX_HEADER_BYTES = 100_000_000  # above which the library refuses a file


class Place(NamedTuple):
    """A tensor among a file's numbers."""

    first: int
    shape: tuple[int, ...]

    def of(self, numbers: torch.Tensor) -> torch.Tensor:
        """The tensor, as a view."""
        return numbers[self.first : self.first + prod(self.shape)].view(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The tensors of a file in the order in which they lie. One object for equal headers.

    `begin` is the byte where the numbers begin. dtype: None where they are of several, or of one
    that is rare. `kept`: whether the next file that begins alike has this object too.
    """

    begin: int
    dtype: torch.dtype | None
    places: Mapping[str, Place]
    numbers: int
    kept: bool


_known: OrderedDict[bytes, Index] = OrderedDict()  # by a digest of the header and the file's size
_lock = Lock()


def read_index(path: Path) -> Index:
    """Raises OSError, and SafetensorError for a file that is none."""
    with path.open("rb", buffering=0) as file:
        return _index_of(file, path)


def read_numbers(path: Path) -> tuple[Index, torch.Tensor]:
    """The file's tensors, and all of their numbers [index.numbers]. Raises what read_index does.

    Where they lie in the system's cache, and not copied: who keeps them copies them. In float32
    where they are of several dtypes.
    """
    with path.open("rb", buffering=0) as file:
        index = _index_of(file, path)
        if not index.numbers:
            return index, torch.zeros(0)
        if index.dtype is None:
            return index, _one_by_one(path, index)
        length = index.begin + index.numbers * index.dtype.itemsize
        try:
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY)
        except ValueError as error:
            raise SafetensorError(f"it was cut off while it was read: {error}") from error
    return index, torch.frombuffer(pages, dtype=index.dtype, offset=index.begin)


def _index_of(file: FileIO, path: Path) -> Index:
    """What the library has found right for one file holds for all of this header and size."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = file.read(min(length, _MAX_HEADER_BYTES))
    digest = hashlib.sha256(size.to_bytes(8, "little") + header).digest()
    with _lock:
        index = _known.get(digest)
        if index is not None:
            _known.move_to_end(digest)
            return index
    with safe_open(path, "pt"):
        pass  # raises for what is wrong with it
    index = _parsed(header, size)
    if index.kept:
        with _lock:
            index = _known.setdefault(digest, index)
            while len(_known) > _MAX_KNOWN:
                _known.popitem(last=False)
    return index


def _parsed(header: bytes, size: int) -> Index:
    """Bound to these bytes, and checked again as far as memory is read by it."""
    tensors = json.loads(header)
    tensors.pop("__metadata__", None)
    dtypes = {tensor["dtype"] for tensor in tensors.values()}
    dtype = _DTYPES.get(next(iter(dtypes))) if len(dtypes) == 1 else None
    begin, places, numbers = 8 + len(header), {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        places[name] = Place(numbers, tuple(tensor["shape"]))
        numbers += prod(tensor["shape"])
    if dtype is not None and begin + numbers * dtype.itemsize != size:
        raise SafetensorError("its header does not fit its size")
    return Index(begin, dtype, places, numbers, kept=len(header) <= _MAX_KNOWN_BYTES)


def _one_by_one(path: Path, index: Index) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        parts = [file.get_tensor(name).float().flatten() for name in index.places]
    numbers = torch.cat(parts)
    if numbers.numel() != index.numbers:
        raise SafetensorError("it was changed while it was read")
    return numbers
