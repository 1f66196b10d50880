"""Processes of their own, forked so that torch is loaded once: work apart, and work that is shot.

On a system without ``fork`` these parts do not run.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

__all__ = ["CAN_FORK", "Fork", "apart"]

T = TypeVar("T")
CAN_FORK = hasattr(os, "fork")


class Fork:
    """A process that does one piece of work.

    Args:
        work: What it does; what it returns is pickled.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        reads, writes = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads, which sit idle here
            self.pid = os.fork()
        if self.pid == 0:
            os.close(reads)
            self._work(work, writes)
        os.close(writes)
        self._pipe = reads

    @staticmethod
    def _work(work: Callable[[], object], pipe: int) -> None:
        try:
            answer: tuple[bool, object] = (True, work())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(pipe, "wb") as out:
            out.write(pickle.dumps(answer))
        os._exit(0)  # nothing of the parent's is to be run at exit

    def shoot(self, after: float) -> None:
        """End it by SIGKILL after so many seconds, wherever it is by then."""
        time.sleep(after)
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[bool, object] | None:
        """Return whether it succeeded, with its answer or traceback; None if it was shot."""
        with os.fdopen(self._pipe, "rb") as pipe:
            said = pipe.read()
        os.waitpid(self.pid, 0)
        return pickle.loads(said) if said else None


def apart(work: Callable[[], T]) -> T:
    """Do a piece of work in a process of its own, which leaves nothing behind in this one.

    Raises:
        RuntimeError: If it fails, with its traceback.
    """
    answer = Fork(work).wait()
    if answer is None or not answer[0]:
        raise RuntimeError(f"a process ended early: {None if answer is None else answer[1]}")
    return answer[1]  # type: ignore[return-value]
