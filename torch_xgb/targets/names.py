"""PEFT's grammar: names, name suffixes, or a regular expression for whole names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

__all__ = ["Matches", "Names", "excluding", "matcher"]

Names = str | Sequence[str]
Matches = Callable[[str], bool]


def matcher(names: Names, argument: str) -> Matches:
    """Return what tells the names that are meant.

    Raises:
        TypeError: If they are neither string nor list of strings.
        ValueError: If they are no regular expression.
    """
    if isinstance(names, str):
        try:
            pattern = re.compile(names)
        except re.error as error:
            raise ValueError(
                f"{argument} is not a regular expression: {names!r} ({error})"
            ) from error
        return lambda name: pattern.fullmatch(name) is not None
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        every = " ('all-linear' is every linear map)" if argument == "target_modules" else ""
        raise TypeError(f"{argument} must be a string or a list of strings{every}, got {names!r}")
    listed = tuple(names)
    return lambda name: any(name == entry or name.endswith(f".{entry}") for entry in listed)


def excluding(names: Names | None) -> Matches:
    """Return what tells the names to leave out."""
    return (lambda name: False) if names is None else matcher(names, "exclude_modules")
