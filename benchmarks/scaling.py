"""What the wrapper itself takes per step as the model, the draw, κ and the rank grow.

    python -m benchmarks.scaling --json runs/scaling.json --plot docs/plots/scaling-step.png

Blocks so small (width 16) that their own work is nearly nothing: what is timed, in processor time,
is Python and dispatch, the worst case for a wrapper. A step is step() and zero_grad(), AdamW's own
work included (and told beside it), merges and draws at 1/κ. Medians over boosters; 24 blocks of
which 8 are drawn, κ = 8 and r = 1, but for what is varied; AdamW as it comes, which on a CPU is a
loop over parameters, and with ``fused=True``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
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
BASES = {"AdamW": False, "AdamW fused": True}


class Block(nn.Module):
    """Seven linear maps, as many as a Llama's block has."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({f"map{i}": nn.Linear(WIDTH, WIDTH) for i in range(7)})

    def forward(self, x: Tensor) -> Tensor:
        """Add up the maps."""
        return x + torch.stack([m(x) for m in self.maps.values()]).mean(0)


@dataclass(frozen=True)
class Step:
    """Microseconds of processor time.

    Attributes:
        whole: ``step()`` and ``zero_grad()``, merges and draws at 1/κ.
        base: AdamW's part of it.
    """

    whole: float
    base: float


Found = Mapping[str, Mapping[int, Step]]  # by what is varied, and its value


def measured(
    blocks: int, drawn: int, kappa: int, r: int, boosters: int, fused: bool = False
) -> Step:
    """Return the medians over boosters of a step."""
    model = nn.Sequential(*[Block() for _ in range(blocks)])
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, r=r, kappa=kappa, layers_per_booster=drawn, lr=1e-3, fused=fused
    )
    clock, inner = Clock(), Clock()
    optimizer.base.register_step_pre_hook(lambda *_: inner.start())
    optimizer.base.register_step_post_hook(lambda *_: inner.stop())
    x = torch.randn(2, WIDTH)
    spent = []
    for _ in range(boosters):
        for _ in range(kappa):
            model(x).square().sum().backward()
            clock.start()
            optimizer.step()
            optimizer.zero_grad()
            clock.stop()
        spent.append((clock.read() / kappa, inner.read() / kappa))
    whole, base = map(statistics.median, zip(*spent, strict=True))
    return Step(whole, base)


class Clock:
    """Adds up processor time, in microseconds."""

    def __init__(self) -> None:
        self.total = self.began = 0.0

    def start(self) -> None:
        """Begin."""
        self.began = time.process_time()

    def stop(self) -> None:
        """End."""
        self.total += 1e6 * (time.process_time() - self.began)

    def read(self) -> float:
        """Return what came together, and begin anew."""
        total, self.total = self.total, 0.0
        return total


def measure(boosters: int, fused: bool = False) -> Found:
    """Vary one setting at a time."""
    return {
        name: {
            value: measured(**{**BASE, name: value}, boosters=boosters, fused=fused)
            for value in values
        }
        for name, values in VARIED.items()
    }


def plot(found: Mapping[str, Found], path: Path) -> None:
    """Draw the time of a step against each setting."""
    from matplotlib.figure import Figure

    labels = {"blocks": "blocks L", "drawn": "drawn blocks L_s", "kappa": "κ", "r": "rank r"}
    figure = Figure(figsize=(11, 3.0), layout="constrained")
    axes = figure.subplots(1, len(labels), sharey=True)
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for (base, varied), colour in zip(found.items(), ("C0", "C1"), strict=True):
            steps = varied[name]
            whole = [step.whole / 1e3 for step in steps.values()]
            axis.plot(list(steps), whole, f"{colour}-o", ms=4, label=f"step(), {base}")
            inner = [step.base / 1e3 for step in steps.values()]
            axis.plot(list(steps), inner, f"{colour}:", label=f"of it {base}'s own")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("ms a step")
    axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


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
    found = {name: measure(options.boosters, fused) for name, fused in BASES.items()}
    rows = [
        [f"{setting} = {value}"]
        + [f"{ms / 1e3:.2f}" for varied in found.values() for ms in astuple(varied[setting][value])]
        for setting, values in VARIED.items()
        for value in values
    ]
    head = [f"{base}{part}" for base in found for part in (", ms a step", "'s own")]
    print(f"{provenance_line()}\n\n{table(['', *head], rows)}")
    if options.plot:
        plot(found, options.plot)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        steps = {
            base: {n: {v: asdict(step) for v, step in some.items()} for n, some in varied.items()}
            for base, varied in found.items()
        }
        options.json.write_text(json.dumps({**provenance(), "us": steps}, indent=2) + "\n")


if __name__ == "__main__":
    main()
