"""One figure of a run: where it changed the model, by how much, and how much of it is new."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torch_xgb.formulas.spectrum import effective_rank, spectra
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.records import taken_out
from torch_xgb.ledger.scores import best_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_chain", "effective_ranks", "layer_norms"]

Facts = Mapping[str, Any]
Delta = Callable[..., tuple[Tensor, Tensor]]
_POINTS = 32  # boosters at which the effective rank is computed: each costs an SVD per weight


def layer_norms(header: ChainHeader, facts: Sequence[Facts]) -> dict[str, list[float]]:
    """Return ‖ΔW‖_F of every booster per layer; NaN where it did not draw the layer."""
    norms = {layer: [math.nan] * len(facts) for layer in dict.fromkeys(header.targets.values())}
    for t, booster in enumerate(facts):
        squares: dict[str, float] = {}
        for target, norm in booster["update_norm"].items():
            layer = header.targets[target]
            squares[layer] = squares.get(layer, 0.0) + norm**2
        for layer, square in squares.items():
            norms[layer][t] = math.sqrt(square)
    return norms


def effective_ranks(
    header: ChainHeader, facts: Sequence[Facts], delta: Delta, times: Sequence[int]
) -> list[float]:
    """Return the effective rank of the update so far at some boosters, averaged over weights.

    Weights that no booster has drawn yet do not count.
    """
    totals, counts = [0.0] * len(times), [0] * len(times)
    for name in header.weights:
        if not name.endswith(".weight"):
            continue
        ranks = [_terms(booster, name, header) for booster in facts]
        widths = [sum(ranks[: t + 1]) for t in times]
        if not widths[-1]:
            continue
        for i, sigma in enumerate(spectra(*delta(name), widths)):
            totals[i] += effective_rank(sigma)
            counts[i] += widths[i] > 0
    return [total / count if count else 0.0 for total, count in zip(totals, counts, strict=True)]


def _terms(booster: Facts, name: str, header: ChainHeader) -> int:
    """Return how many rows a booster has in a weight's update."""
    taken, _ = taken_out(booster, header)
    more = taken[name]["rank"] if name in taken else 0
    return int(booster["rank"] + more) if name in booster["scales"] else 0


def draw_chain(
    header: ChainHeader, facts: Sequence[Facts], delta: Delta, scores: Mapping[int, float]
) -> Figure:
    """Draw a chain: where it changed the model, how much, and of what rank.

    A heat map of layers and boosters, and below it, booster by booster, the norm of the update, the
    effective rank of the sum so far and, where given, the scores.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no booster.
    """
    if not facts:
        raise ValueError("there is nothing to draw: the ledger holds no booster")
    figure, axes = _panels(4 if scores else 3, len(set(header.targets.values())))
    norms = layer_norms(header, facts)
    _draw_heat_map(figure, axes[0], norms)
    steps = range(len(facts))
    per_booster = [math.hypot(*booster["update_norm"].values()) for booster in facts]
    _draw_line(axes[1], steps, per_booster, "update norm")
    times = _spread(len(facts), _POINTS)
    _draw_line(axes[2], times, effective_ranks(header, facts, delta, times), "effective rank")
    if scores:
        _draw_line(axes[3], list(scores), list(scores.values()), "score")
        best = best_of(scores)
        axes[3].plot(best, scores[best], "o", color=_BEST, label=f"best: booster {best}")
        axes[3].legend(frameon=False, fontsize="small", loc="lower right")
    axes[-1].set_xlabel("booster")
    axes[-1].set_xlim(-0.5, len(facts) - 0.5)
    axes[-1].locator_params(axis="x", integer=True)
    figure.align_ylabels(axes)
    return figure


_LINE, _BEST, _NOT_DRAWN = "#3b528b", "#d95f02", "#eeeeee"


def _panels(count: int, layers: int) -> tuple[Figure, Sequence[Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'torch-xgb[plot]'") from error
    heat = min(6.0, max(1.8, 0.24 * layers))
    figure = Figure(figsize=(8, heat + 1.5 * (count - 1)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [heat, *[1.3] * (count - 1)]
    axes = figure.subplots(count, sharex=True, height_ratios=heights)
    for panel in axes[1:]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _draw_heat_map(figure: Figure, panel: Axes, norms: Mapping[str, Sequence[float]]) -> None:
    image = panel.imshow(
        list(norms.values()), aspect="auto", interpolation="nearest", vmin=0, cmap="YlGnBu"
    )
    panel.set_facecolor(_NOT_DRAWN)
    shown = _spread(len(norms), 24)
    names = _short(list(norms))
    panel.set_yticks(shown, [names[i] for i in shown], fontsize="small")
    panel.set_ylabel("layer")
    panel.set_title("update norm by layer and booster (grey: not drawn)", fontsize="medium")
    panel.tick_params(length=0)
    figure.colorbar(image, ax=panel, pad=0.01)


def _draw_line(panel: Axes, x: Sequence[int], y: Sequence[float], label: str) -> None:
    marker = "." if len(x) <= 64 else ""
    panel.plot(x, y, marker=marker, color=_LINE, linewidth=1.2)
    panel.set_ylabel(label)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    if label != "score":
        panel.set_ylim(0, 1.1 * max(y) or 1)


def _spread(count: int, most: int) -> list[int]:
    """Return at most so many indices below a count, evenly spread from the first to the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _short(names: Sequence[str]) -> list[str]:
    """Return names without the part they all begin with."""
    if len(names) < 2:
        return list(names)
    prefix = os.path.commonprefix(list(names))
    prefix = prefix[: prefix.rfind(".") + 1]
    return [name.removeprefix(prefix) for name in names]
