"""Random numbers that are pure functions of what they are for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Field", "by", "mix", "stream"]


def stream(
    seed: int, booster_index: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator that depends on its arguments alone; no global one is touched."""
    digest = _digest(seed, booster_index, purpose)
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "big") >> 1)


def by(generator: torch.Generator) -> dict[str, Any]:
    """Return the arguments that draw from a generator where it is.

    The default device is the user's to set.
    """
    return {"generator": generator, "device": generator.device}


@dataclass(frozen=True)
class Field:
    """A random number for every entry of a matrix, without a generator.

    A hash of integers, pure in what it is for, the row and the column: the same on every device,
    and for every part of the matrix, whoever keeps it.

    Args:
        of_rows: A number that rows are told apart by.
        of_columns: One for columns.
    """

    of_rows: int
    of_columns: int

    @classmethod
    def of(cls, seed: int, booster_index: int, purpose: str) -> Field:
        """Return the numbers of a seed and a booster for one purpose."""
        digest = _digest(seed, booster_index, purpose)
        return cls(int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big"))

    def keys(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return int16 numbers that rows and columns are told apart by, of a matrix of a shape."""
        rows, columns = (slice(0, size) for size in shape)
        return _keys(self.of_rows, rows, device), _keys(self.of_columns, columns, device)

    def bits(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        """Return int16 numbers of shape (rows, columns); of each the upper bits are good ones."""
        of_rows = _keys(self.of_rows, rows, device)
        of_columns = _keys(self.of_columns, columns, device)
        mixed = torch.empty(len(of_rows), len(of_columns), dtype=torch.int16, device=device)
        return mix(of_rows, of_columns, mixed)


def mix(of_rows: Tensor, of_columns: Tensor, out: Tensor) -> Tensor:
    """Return what keys of rows and of columns make of every entry, as ``Field.bits``.

    Their product modulo 2¹⁶, one operation an entry. Of odd numbers drawn at random, those of any
    two entries are independent of one another, unless their rows or columns share a key.

    Args:
        of_rows: Shape ``(rows,)``.
        of_columns: Shape ``(columns,)``.
        out: Shape ``(rows, columns)``, written to.
    """
    return torch.mul(of_rows.unsqueeze(1), of_columns, out=out)


# Multipliers of a 32-bit integer hash with little bias (Wellons, "Prospecting for hash functions",
# 2018); integers of torch wrap around.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B


def _keys(key: int, positions: slice, device: torch.device) -> Tensor:
    """Return a well-mixed odd int16 number of every position."""
    counted = torch.arange(positions.start, positions.stop, dtype=torch.int64, device=device)
    keys = counted + key
    keys = (keys ^ (keys >> 16)) * _FIRST & 0xFFFFFFFF
    keys = (keys ^ (keys >> 15)) * _SECOND & 0xFFFFFFFF
    keys = (keys ^ (keys >> 16)) & 0xFFFF | 1
    return torch.where(keys >= 1 << 15, keys - (1 << 16), keys).to(torch.int16)


def _digest(seed: int, booster_index: int, purpose: str) -> bytes:
    name = f"{seed}/{booster_index}/{purpose}"
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
