"""Which positions of a dimension a process keeps, when several share it out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

__all__ = ["Range", "Way", "cut", "taken"]

Range = range  # positions of the whole, one after the other
Way = tuple[int, int, int]


@lru_cache(maxsize=4096)
def cut(size: int, ways: tuple[Way, ...]) -> tuple[Range, ...]:
    """Return what a process keeps of so many positions, in the order it keeps them in.

    Args:
        size: How many there are.
        ways: How dimensions of a mesh cut them, in the mesh's order: into how many parts, as
            ``torch.chunk`` does; which of them is kept; and into how many strides before, of each
            of which that part is (DTensor's ``_StridedShard``). One of as many strides as later
            ones make parts cuts what these leave, as FSDP2 does beside tensor parallelism.
    """
    kept = [range(size)]
    for parts, own, strides in _in_turn(ways):
        each = [_chunk(kept, strides, i) for i in range(strides)]
        kept = _joined([one for stride in each for one in _chunk(stride, parts, own)])
    return tuple(kept)


def _in_turn(ways: Sequence[Way]) -> list[Way]:
    found: list[Way] = []
    for parts, own, strides in reversed(ways):
        if strides > 1 and strides == prod(later for later, _, _ in found):
            found.append((parts, own, 1))
        else:
            found.insert(0, (parts, own, strides))
    return found


def taken(tensor: Tensor, dim: int, ranges: Sequence[Range]) -> Tensor:
    """Return the entries of some positions along a dimension: a view if they are neighbours."""
    if sum(map(len, ranges)) == tensor.shape[dim]:
        return tensor
    parts = [tensor.narrow(dim, r.start, len(r)) for r in ranges]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim) if parts else tensor.narrow(dim, 0, 0)


def _chunk(ranges: Sequence[Range], parts: int, own: int) -> list[Range]:
    """Return one of the parts that ``torch.chunk`` makes of positions."""
    size = sum(map(len, ranges))
    length = -(-size // parts)
    start, left = own * length, length
    found = []
    for one in ranges:
        part = one[start : start + left] if left else one[:0]
        start = max(0, start - len(one))
        left -= len(part)
        found.append(part)
    return [part for part in found if part]


def _joined(ranges: Sequence[Range]) -> list[Range]:
    found: list[Range] = []
    for one in ranges:
        if found and found[-1].stop == one.start:
            found[-1] = range(found[-1].start, one.stop)
        else:
            found.append(one)
    return found
