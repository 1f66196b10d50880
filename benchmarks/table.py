"""Tables in Markdown, which terminals and documentation both show well."""

from collections.abc import Sequence

COSTS = ("trained", "of the model", "beside the head", "memory", "step")


def cost_cells(trainable: int, head: int, total: int, peak: int, step_ms: float) -> list[str]:
    """Format what a run cost, for the columns ``COSTS``: counts in per mille, bytes in MB."""
    return [
        f"{trainable:,}",
        f"{1e3 * trainable / total:.1f} ‰",
        f"{1e3 * (trainable - head) / total:.1f} ‰",
        f"{peak / 1e6:.0f} MB",
        f"{step_ms:.0f} ms",
    ]


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
