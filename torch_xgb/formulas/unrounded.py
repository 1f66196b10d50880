"""Thin products in the dtype they are given in, whatever autocast or a backend would make of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["unrounded"]

_ONEDNN: Any = torch.backends.mkldnn  # torch puts an object in the module's place


def unrounded(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which products of a tensor are computed in its own dtype.

    Under autocast they would first copy it, a full-size temporary. So would oneDNN where float32
    products may be rounded: it converts x, for a product so thin three to eight times the time of
    the product itself.
    """
    if x.is_meta:
        return nullcontext()
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and _rounds():
        return _exact()
    return nullcontext()


def _rounds() -> bool:
    # torch.get_float32_matmul_precision() raises once any backend has been set by the newer API.
    return _ONEDNN.matmul.fp32_precision not in ("none", "ieee")


@contextmanager
def _exact() -> Iterator[None]:
    who = object()
    try:
        _FLAG.enter(who)
        yield
    finally:
        _FLAG.leave(who)


class _Flag:
    """The flag of the whole process, taken by the first thread that asks, left by the last.

    An interrupt at any of its lines leaves the flag to whoever comes next, and what it was known.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: set[object] = set()
        self._before: str | None = None  # what it was, while it is taken

    def enter(self, who: object) -> None:
        products = _ONEDNN.matmul
        with self._lock:
            if self._before is None:
                self._before = products.fp32_precision
            self._inside.add(who)
            products.fp32_precision = "ieee"

    def leave(self, who: object) -> None:
        products = _ONEDNN.matmul
        with self._lock:
            self._inside.discard(who)
            if self._inside or self._before is None:
                return
            products.fp32_precision = "none"  # so that what was inherited still is
            if products.fp32_precision != self._before:
                products.fp32_precision = self._before
            self._before = None


_FLAG = _Flag()
