"""Tables in Markdown, which terminals and documentation both show well."""

from collections.abc import Sequence

from benchmarks.measures.metrics import interval


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table: first column to the left, the others to the right.

    Example:
        >>> print(table(["method", "score"], [["LoRA", "0.9"]]))
        | method | score |
        |:-------|------:|
        | LoRA   |   0.9 |
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = [":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join(
        [_line(head, widths), f"|{'|'.join(rule)}|", *(_line(r, widths) for r in rows)]
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Lay out one row."""
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(padded)} |"


def percent(scores: Sequence[float]) -> str:
    """Format the mean of shares, with its 95 % confidence interval where there are several."""
    if not scores:
        return "–"
    mean, half = interval(scores)
    return f"{100 * mean:.1f}" + (f" ± {100 * half:.1f}" if len(scores) > 1 else "")
