"""Zeros in memory that comes from the system by pages."""

import mmap

import torch

_ANONYMOUS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)  # Linux: all pages at once, in half of the time


def zeros(
    numbers: int, dtype: torch.dtype, device: torch.device, *, as_filled: bool = False
) -> torch.Tensor:
    """[numbers]. `as_filled`: on a CPU, a page is there when it is touched; most never are."""
    if device.type != "cpu" or not _POPULATE:
        return torch.zeros(numbers, dtype=dtype, device=device)
    flags = _ANONYMOUS if as_filled else _ANONYMOUS | _POPULATE
    return torch.frombuffer(mmap.mmap(-1, numbers * dtype.itemsize, flags=flags), dtype=dtype)
