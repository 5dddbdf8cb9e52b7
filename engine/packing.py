"""Packing: several short examples in a row of many tokens. Torch-free, for trainer and estimate."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The places of the examples that share a row, for each row of at most `room` tokens.

    Best fit decreasing (Johnson et al. 1974, https://doi.org/10.1137/0203025): the longest first,
    each into the fullest row that still takes it. `lengths` are in tokens, none above `room`; of
    equally long examples the first comes first, so the same lengths always share rows alike.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # by the tokens that are left in them
    spaces: list[int] = []  # the keys of open_rows in order
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[place]
        at = bisect_left(spaces, length)
        if at == len(spaces):
            row, space = len(rows), room
            rows.append([])
        else:
            space = spaces[at]
            row = open_rows[space].pop()
            if not open_rows[space]:
                del open_rows[space]
                spaces.pop(at)
        rows[row].append(place)
        left = space - length
        if left not in open_rows:
            open_rows[left] = []
            insort(spaces, left)
        open_rows[left].append(row)
    return rows
