"""What the wrapper itself takes per step as the model, the draw, κ and the rank grow.

    python -m benchmarks.scaling --json runs/scaling.json --plot runs/scaling.png

Blocks so small (width 16) that their own work is nearly nothing: what is timed, in processor time,
is Python and dispatch, the worst case for a wrapper. A step is step() and zero_grad(), AdamW's own
work included, merges and draws at 1/κ. Medians over boosters; 24 blocks of which 8 are drawn, κ = 8
and r = 1, but for what is varied.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table
from torch_xgb import BoostedLowRankOptimizer

WIDTH = 16
BASE = {"blocks": 24, "drawn": 8, "kappa": 8, "r": 1}
VARIED = {
    "blocks": (8, 12, 24, 48, 96),
    "drawn": (1, 2, 4, 8, 16),
    "kappa": (1, 2, 4, 8, 32),
    "r": (1, 2, 4, 8, 16),
}


class Block(nn.Module):
    """Seven linear maps, as many as a Llama's block has."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({f"map{i}": nn.Linear(WIDTH, WIDTH) for i in range(7)})

    def forward(self, x: Tensor) -> Tensor:
        """Add up the maps."""
        return x + torch.stack([m(x) for m in self.maps.values()]).mean(0)


def microseconds(blocks: int, drawn: int, kappa: int, r: int, boosters: int) -> float:
    """Return the median processor time of a step of a booster, its merge included."""
    model = nn.Sequential(*[Block() for _ in range(blocks)])
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, r=r, kappa=kappa, layers_per_booster=drawn, lr=1e-3
    )
    x, spent = torch.randn(2, WIDTH), []
    for _ in range(boosters):
        total = 0.0
        for _ in range(kappa):
            model(x).square().sum().backward()
            start = time.process_time()
            optimizer.step()
            optimizer.zero_grad()
            total += time.process_time() - start
        spent.append(1e6 * total / kappa)
    return statistics.median(spent)


def measure(boosters: int) -> dict[str, dict[int, float]]:
    """Vary one setting at a time."""
    return {
        name: {value: microseconds(**{**BASE, name: value}, boosters=boosters) for value in values}
        for name, values in VARIED.items()
    }


def plot(found: dict[str, dict[int, float]], path: Path) -> None:
    """Draw the time of a step against each setting."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    labels = {"blocks": "blocks L", "drawn": "drawn blocks L_s", "kappa": "κ", "r": "rank r"}
    figure, axes = pyplot.subplots(1, len(found), figsize=(11, 2.8), sharey=True)
    for axis, (name, values) in zip(axes, found.items(), strict=True):
        axis.plot(list(values), [v / 1e3 for v in values.values()], marker="o")
        axis.set_xlabel(labels[name])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("step() + zero_grad(), ms")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--boosters", type=int, default=15, help="per point (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    found = measure(options.boosters)
    rows = [
        [f"{name} = {value}", f"{time_ / 1e3:.2f}"]
        for name, values in found.items()
        for value, time_ in values.items()
    ]
    print(f"{provenance_line()}\n\n{table(['', 'ms a step'], rows)}")
    if options.plot:
        plot(found, options.plot)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**provenance(), "us": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
