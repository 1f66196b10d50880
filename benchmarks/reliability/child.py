"""A process that lives as long as the runs it is asked about, forked before any of them."""

from __future__ import annotations

import os
import pickle
import struct
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import IO, Any

__all__ = ["Child"]


class Child:
    """Answers calls of functions by name.

    Args:
        calls: The functions.
    """

    def __init__(self, calls: Mapping[str, Callable[..., object]]) -> None:
        there, to = os.pipe()
        back, here = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pid = os.fork()
        if self.pid == 0:
            os.close(to)
            os.close(back)
            _serve(calls, os.fdopen(there, "rb"), os.fdopen(here, "wb"))
        os.close(there)
        os.close(here)
        self._to, self._back = os.fdopen(to, "wb"), os.fdopen(back, "rb")

    def ask(self, name: str, *arguments: Any) -> Any:
        """Return the function's answer.

        Raises:
            RuntimeError: If it failed there, with its traceback.
        """
        _send(self._to, (name, arguments))
        good, answer = _receive(self._back)
        if not good:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End it."""
        self._to.close()
        self._back.close()
        os.waitpid(self.pid, 0)


def _serve(calls: Mapping[str, Callable[..., object]], asked: IO[bytes], said: IO[bytes]) -> None:
    while True:
        try:
            name, arguments = _receive(asked)
        except BaseException:
            os._exit(0)
        try:
            answer: tuple[bool, object] = (True, calls[name](*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        _send(said, answer)


def _send(pipe: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    pipe.write(struct.pack("<q", len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    (size,) = struct.unpack("<q", pipe.read(8))
    return pickle.loads(pipe.read(size))
