"""Digests of what a ledger holds, so that a changed bit is found."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["of_plain", "of_tensor", "of_tensors", "of_text", "require", "sealed", "unsealed"]

_LENGTH = 32  # hexadecimal digits: 128 bits


def of_text(text: str) -> str:
    """Return the digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_LENGTH]


def of_plain(value: object) -> str:
    """Return the digest of JSON's types, the same for what reads back the same."""
    return of_text(json.dumps(value, sort_keys=True))


def of_tensor(tensor: Tensor) -> str:
    """Return the digest of a tensor on the CPU: its dtype, its shape and its entries' bits."""
    tensor = tensor.detach().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if size := tensor.numel() * tensor.element_size():
        digest.update((ctypes.c_ubyte * size).from_address(tensor.data_ptr()))
    return digest.hexdigest()[:_LENGTH]


def of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digests of tensors, by their names."""
    return {name: of_tensor(tensor) for name, tensor in tensors.items()}


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with their own digest among them."""
    return {**facts, _SEAL: of_plain(facts)}


def unsealed(facts: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    """Return sealed facts without their digest.

    Raises:
        ValueError: If they are not what was sealed, or have no digest and must have one.
    """
    rest = {name: facts[name] for name in facts if name != _SEAL}
    if _SEAL in facts and facts[_SEAL] != of_plain(rest):
        raise ValueError(_CHANGED)
    if _SEAL not in facts and required:
        raise ValueError(f"it lacks {_SEAL!r}")
    return rest


def require(given: object, found: str) -> None:
    """Raise a ValueError if a digest is not the one that was written down."""
    if given != found:
        raise ValueError(_CHANGED)


_SEAL = "checksum"
_CHANGED = "it has been changed since it was written (the checksum differs)"
