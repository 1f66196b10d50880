"""What the wrapper itself takes per step as the model, the draw, κ and the rank grow.

    python -m benchmarks.scaling --json runs/scaling.json --plot docs/results/plots/scaling-step.png

Blocks so small (width 16) that their own work is nearly nothing: what is timed, in processor time,
is Python and dispatch, the worst case for a wrapper. A step is step() and zero_grad(), AdamW's own
work included (and told beside it), merges and draws at 1/κ. Medians over boosters; 24 blocks of
which 8 are drawn, κ = 8 and r = 1, but for what is varied; AdamW as it comes, which on a CPU is a
loop over parameters, and with ``fused=True``.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measures.scaling import BASES, measure
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance_line
from benchmarks.tables.scaling import plot, record, scaling_table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command.parser("scaling", __doc__)
    parser.add_argument("--boosters", type=int, default=15, help="per point (default: 15)")
    command.add_json(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    found = {name: measure(options.boosters, fused) for name, fused in BASES.items()}
    print(f"{provenance_line()}\n\n{scaling_table(found)}")
    if options.plot:
        plot(found, options.plot)
    command.write(options.json, record(found))


if __name__ == "__main__":
    main()
