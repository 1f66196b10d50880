"""An exception at any line of the library's code."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch_xgb

LIBRARY = str(Path(torch_xgb.__file__).parent)


class Interrupt(BaseException):
    """Ctrl-C, at a line of our choosing."""


class At:
    """Raises at the n-th line of the library's code that is run inside."""

    def __init__(self, line: int, error: type[BaseException] = Interrupt) -> None:
        self.left, self.error, self.fired = line, error, False

    def __enter__(self) -> "At":
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(LIBRARY) else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.left -= 1
            if self.left < 0 and not self.fired:
                self.fired = True
                sys.settrace(None)
                raise self.error
        return self._line
