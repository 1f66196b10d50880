"""The one line at the rates that people bring: α × rate × r × how boosters start.

    python -m benchmarks.rates --quick            # TREC, one seed, the paper's start
    python -m benchmarks.rates                    # two tasks, three seeds; goes on where it stopped

MiniLM, 300 steps of 16 rows, everything at the optimizer's defaults, the new classifier alone
trained in full, AdamW with its own decay. What is measured is which α makes LoRA's customary rates
(2e-4 to 2e-3) and AdamW's default (1e-3) train as brought, and whether the best rate moves with r.
"""

from collections.abc import Sequence

from benchmarks.methods.rates import ALPHAS, RANKS, RATES, STARTS, method
from benchmarks.runs import command, sweep
from benchmarks.runs.journal import Journal
from benchmarks.runs.sweep import Run, work
from benchmarks.subjects import minilm
from benchmarks.tables.rates import rates_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("rates", __doc__)
    parser.add_argument("--quick", action="store_true", help="one task, one seed, no carry")
    parser.add_argument("--tasks", nargs="+", default=("TREC", "SST-2"))
    parser.add_argument("--starts", nargs="+", choices=tuple(STARTS), default=tuple(STARTS))
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--alphas", nargs="+", type=float, default=ALPHAS)
    parser.add_argument("--lrs", nargs="+", type=float, default=RATES)
    parser.add_argument("--steps", type=int, default=300, help="(default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args(argv)
    if options.quick:
        options.tasks, options.starts, options.seeds = ("TREC",), ("the paper's",), 1
    with command.needed("rates"):
        minilm.folder()
    journal = Journal(sweep.RATES)
    for seed in range(options.seeds):  # everything once before anything twice
        for task in options.tasks:
            for start in options.starts:
                methods = [method(start, r, a) for a in options.alphas for r in options.ranks]
                work([Run(task, m, lr, seed, options.steps) for m in methods for lr in options.lrs], journal)  # fmt: skip  # noqa: E501
    for task in options.tasks:
        for start in options.starts:
            args = (task, start, options.ranks, options.steps, options.seeds, journal)
            print(rates_table(*args), end="\n\n")


if __name__ == "__main__":
    main()
