"""What a merge takes, against one read and write of the weights it touches.

    python -m benchmarks.merge_cost                        # under a minute
    python -m benchmarks.merge_cost --width 4096 --maps 2

Square linear maps without bias, all of them drawn, rank 1 unless it is said. Timed are merges with
all that belongs to them, the draw of the next booster included, and in the same run an in-place
multiplication of the same weights by one. Each figure is the least of several: of processor time
on the CPU, of time until the device is done elsewhere. *Looks* are what a merge reads of the
weights beside what it writes: whether they are what they were after the last one, and what they
are now. *Sums* are the products going into the weights. *Temporary* is the most it holds above what
was held before, residuals and the next pairs apart. *Passes* are operations over an entry of
the weights, whatever the machine.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.measures.merging import CASES, MergeCost, merge_cost
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.tables.table import table


def rows_table(found: dict[str, MergeCost]) -> str:
    """Lay out a line a case."""
    head = ["", "read and write, ms", "merge, ms", "ratio", "looks, ms", "sums, ms"]
    head += ["temporary MB", "passes"]
    body = [
        [
            name,
            *(f"{1e3 * seconds:.2f}" for seconds in (cost.traffic, cost.merge)),
            f"{cost.ratio:.1f}",
            *(f"{1e3 * seconds:.2f}" for seconds in (cost.looks, cost.sums)),
            f"{cost.temporary / 1e6:.1f}",
            f"{cost.passes:.1f}",
        ]
        for name, cost in found.items()
    ]
    return table(head, body)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command.parser("merge_cost", __doc__)
    parser.add_argument("--width", type=int, default=1024, help="of the maps (default: 1024)")
    parser.add_argument("--maps", type=int, default=4, help="how many (default: 4)")
    parser.add_argument("--merges", type=int, default=20, help="timed ones (default: 20)")
    parser.add_argument("--device", default="cpu", help="where (default: cpu)")
    command.add_json(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    found = {
        case: merge_cost(case, options.width, options.maps, options.merges, device)
        for case in CASES
    }
    print(f"{options.maps} x {options.width} x {options.width} on {device}; {provenance_line()}\n")
    print(rows_table(found))
    rows = {name: asdict(cost) for name, cost in found.items()}
    command.write(options.json, {"device": str(device), **provenance(), "rows": rows})


if __name__ == "__main__":
    main()
