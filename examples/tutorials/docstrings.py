"""The tutorials' data, from Python's own library: docstrings of ``decimal``, and of ``email``."""

import decimal
import email.message
import inspect
import random
from types import ModuleType

__all__ = ["rows"]


def rows() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return (docstring, label) rows to learn from, and 20 that are held out."""
    modules = (decimal, email.message)
    found = [(text, label) for label, module in enumerate(modules) for text in _first_lines(module)]
    random.Random(0).shuffle(found)
    return found[:-20], found[-20:]


def _first_lines(module: ModuleType) -> list[str]:
    """Return what the methods of a module's classes say of themselves."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    members = [f for c in classes for f in vars(c).values() if callable(f)]
    return sorted({d.split("\n")[0] for f in members if len(d := inspect.getdoc(f) or "") > 20})
