"""Plots of the tables: one figure a file, readable in print."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """A line: its label and points. A guide is there to be compared with."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    guide: bool = False


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot, with half the height of its interval."""

    label: str
    x: float
    y: float
    error: float = 0.0


def draw(
    path: Path,
    curves: Sequence[Curve],
    x: str,
    y: str,
    title: str,
    logarithmic: bool = True,
    dots: bool = False,
    lowest: float | None = None,
) -> None:
    """Draw curves; solid and dashed ones take the same colours in the same order.

    Args:
        path: The file.
        curves: What to draw.
        x: The horizontal axis's label.
        y: The vertical axis's.
        title: The figure's.
        logarithmic: Whether the axes are; with dots, the horizontal one.
        dots: Whether the points are few: each gets a dot, and its x a tick.
        lowest: The least y shown.
    """
    figure, axes = _figure()
    counts = {False: 0, True: 0}
    for curve in curves:
        if curve.guide:
            axes.plot(curve.x, curve.y, color="0.5", lw=1, ls=":", label=curve.label)
            continue
        style = {"ls": "--" if curve.dashed else "-", "marker": "o" if dots else None}
        colour = f"C{counts[curve.dashed]}"
        axes.plot(curve.x, curve.y, color=colour, lw=1.4, ms=4, label=curve.label, **style)
        counts[curve.dashed] += 1
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("linear" if dots else "log")
        axes.set_xlim(left=min(v for curve in curves for v in curve.x if v > 0))
    if dots:
        measured = sorted({v for curve in curves for v in curve.x})
        axes.set_xticks(measured, [f"{v:,}" for v in measured])
    axes.set_ylim(bottom=lowest)
    axes.legend(fontsize=8)
    _finish(figure, axes, path, x, y, title)


def scatter(
    path: Path, points: Sequence[Point], x: str, y: str, title: str, logarithmic: bool
) -> None:
    """Draw a point a method, named in the legend."""
    figure, axes = _figure()
    for i, point in enumerate(points):
        marker = "os^DvPX"[i % 7]  # as many as have no factor in common with the ten colours
        style = {"fmt": marker, "color": f"C{i % 10}", "label": point.label}
        axes.errorbar(point.x, point.y, point.error, capsize=3, ms=5, **style)
    figure.set_figwidth(8.4)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # beside what it would hide
    if logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.1, y=0.1)
    _finish(figure, axes, path, x, y, title)


def _figure():  # noqa: ANN202
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    return figure, figure.add_subplot()


def _finish(figure, axes, path: Path, x: str, y: str, title: str) -> None:  # noqa: ANN001
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
