"""One thread at a time: a state saved by another must not meet a step that is half taken.

What a step leaves undone is made up for before anything is saved, and one that goes on in another
thread looks just so: it would be counted twice.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["Alone", "alone"]

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Any)


class Alone:
    """A lock that whoever holds it may take again; a copy's is nobody's."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Alone], tuple[()]]:
        """Begin anew in a copy."""
        return Alone, ()


def alone(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Have other threads wait while a method runs.

    Args:
        method: Of the boosting, which has the lock, or of an optimizer, which has the boosting.
    """

    @functools.wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with getattr(self, "boosting", self).alone:
            return method(self, *args, **kwargs)

    return run
