"""Score against time and memory: what each method reaches in LoRA's time, and what it needs for it.

    pip install badam galore-torch bitsandbytes   # contenders; what is missing is left out
    python -m benchmarks.frontier                 # goes on where it stopped
    python -m benchmarks.frontier --count         # FLOPs and bytes alone: a few minutes

MiniLM on TREC and STS-B. Time is counted, the same on every machine: FLOPs of matrix products of a
whole step, forward, backward and optimizer, the mean over the blocks drawn. LoRA r=8 takes
300 steps, and every other method as many as the same FLOPs buy, each in a schedule of its own
length; within 8 % of 300 it is 300, whose runs ``benchmarks.glue --own`` has. Memory is the most
that a run holds: weights, gradients, optimizer state and activations of 16 rows of 32 tokens, where
the lowest block is drawn.

Rates are those of ``benchmarks.glue --own``; fewer blocks take that of every block. BAdam, GaLore
and LoRA r=32 have two, and keep the one of lower loss on the scored rows.
"""

from collections.abc import Sequence

from benchmarks.methods.frontier import entries
from benchmarks.runs import command, frontier
from benchmarks.runs.journal import Journal
from benchmarks.runs.sweep import RUNS
from benchmarks.subjects import minilm
from benchmarks.tables.frontier import frontier_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("frontier", __doc__)
    names = tuple(entry.name for entry in entries())
    parser.add_argument("--count", action="store_true", help="count, and train nothing")
    parser.add_argument("--tasks", nargs="+", choices=frontier.TASK_NAMES, metavar="TASK")
    parser.add_argument("--only", nargs="+", choices=names, metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args(argv)
    with command.needed("frontier"):
        minilm.folder()
    counts, journal = frontier.counts(Journal(frontier.COUNTS)), Journal(RUNS)
    if not options.count:
        tasks = tuple(options.tasks or frontier.TASK_NAMES)
        chosen = tuple(options.only or names)
        frontier.run(tasks, chosen, options.seeds, journal, counts)
    print(frontier_table(counts, journal))


if __name__ == "__main__":
    main()
