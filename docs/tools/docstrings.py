"""What Markdown does not read in our docstrings, put into words that it does."""

import logging
import re
from typing import Any

import griffe

log = logging.getLogger("mkdocs.docstrings")
_LETTERS = {
    "alpha": "α",
    "dots": "…",
    "eta": "η",
    "kappa": "κ",
    "leftarrow": "←",
    "max": "max",
    "prod": "∏",
    "qquad": "   ",
    "rho": "ρ",
    "sum": "∑",
    "tau": "τ",
}


class Docstrings(griffe.Extension):
    """Rewrites sections called Example, and formulas, before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Return a docstring whose examples are a section and whose formulas are code.

    Google's style knows ``Examples:``; an ``Example:`` is a note to it, with its code as prose.
    """
    doctests = re.sub(r"^Example:\n(?=\s+>>>)", "Examples:\n", text, flags=re.MULTILINE)
    code = re.sub(
        r"^Example:\n((?:(?: {4}.*)?\n?)+)",
        lambda m: "Example:\n    ```python\n" + m[1].rstrip() + "\n    ```\n",
        doctests,
        flags=re.MULTILINE,
    )
    return re.sub(r"^\.\. math:: (.*)$", lambda m: f"    {_plain(m[1])}", code, flags=re.MULTILINE)


def _plain(formula: str) -> str:
    """Spell a formula in letters; whose command has none is a warning, and fails the build."""

    def letter(match: re.Match[str]) -> str:
        if match[1] not in _LETTERS:
            log.warning("docs/tools/docstrings.py has no letter for %s in %s", match[0], formula)
        return _LETTERS.get(match[1], match[1])

    return re.sub(r"\\([a-z]+)", letter, formula.replace("\\,", " "))
