"""How far a loop is: a bar on a terminal, and a line every half minute where there is none."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["Progress"]

_SECONDS = 30.0


class _Lines:
    """Writes what is meant to be written over as lines of their own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if line := text.strip():
            self.stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


class Progress(tqdm):
    """tqdm, which writes ten times a second whatever it writes to, for people and for log files.

    Args:
        *args: tqdm's.
        file: Where to, by default stderr.
        seconds: Between two lines of a log; what is over sooner has none.
        **kwargs: tqdm's.
    """

    def __init__(
        self, *args: Any, file: TextIO | None = None, seconds: float = _SECONDS, **kwargs: Any
    ) -> None:
        stream = sys.stderr if file is None else file
        if not stream.isatty():
            kwargs |= {"mininterval": seconds, "delay": seconds, "miniters": 1, "ncols": 100}
            stream = _Lines(stream)
        super().__init__(*args, file=stream, **kwargs)
