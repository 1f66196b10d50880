"""Who is calling: of some calls nothing but the interpreter's stack tells what they are part of.

A walk to its end takes microseconds: it is for savers and for what has changed, and not for steps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

__all__ = ["callers"]


def callers() -> Iterator[FrameType]:
    """Yield the frames at work, from the one that asks outwards."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
