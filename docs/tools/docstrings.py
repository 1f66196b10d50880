"""What Markdown does not read in our docstrings, put into words that it does."""

import re
from typing import Any

import griffe

_MATHS = {
    r"\leftarrow": "←",
    r"\alpha_t": "α_t",
    r"\qquad": "   ",
    r"\dots": "…",
    r"\,": " ",
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
    for command, letters in _MATHS.items():
        formula = formula.replace(command, letters)
    return formula
