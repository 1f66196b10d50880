"""Where the rank is the ceiling: a byte language model from random weights.

    python -m benchmarks.ceiling                  # the whole queue; goes on where it stopped
    python -m benchmarks.ceiling --quick          # every method for 8 steps, kept apart
    python -m benchmarks.ceiling --table          # what is recorded, nothing trained
    python -m benchmarks.ceiling --known          # a noisy linear map instead: minutes

Four blocks of width 128 read the source of Python's standard library, 8 x 64 bytes a step;
embeddings, head and norms are trained in full by every method at the same rate, the blocks'
matrices only through the method. Each method's rate is the best of three on held-out files at
K = 400, seed 0, and of a fourth where the best is at an end of the three; it falls linearly from
the start, or is held for three quarters of the run. The queue begins with what matters most: rank 1
at K = 1,600 with three seeds, then K = 6,400, there at half and at twice the rate too, then the
rest. Runs are appended to benchmarks/results/ceiling.jsonl.

With --known a map whose best approximation of each rank is known learns another, by LoRA, the
paper's boosters and pairs let go at several speeds (benchmarks.runs.letting_go).
"""

from collections.abc import Sequence

from benchmarks.runs import ceiling, command, letting_go
from benchmarks.runs.journal import Journal
from benchmarks.subjects import bytelm
from benchmarks.tables.ceiling import difference_table, loss_table, measure, rate_table
from benchmarks.tables.letting_go import letting_go_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("ceiling", __doc__)
    parser.add_argument("--quick", action="store_true", help="short runs, by the same code")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--known", action="store_true", help="a linear map, its optimum known")
    options = parser.parse_args(argv)
    if options.known:
        known = Journal(letting_go.JOURNAL)
        if not options.table:
            letting_go.run(known)
        print(letting_go_table(known))
        return
    with command.needed("ceiling"):
        bytelm.text()
    journal = Journal(ceiling.QUICK_JOURNAL if options.quick else ceiling.JOURNAL)
    if options.quick:
        ceiling.QUICK.run(journal)
        measure(journal, rounds=1)
        print(loss_table(journal, (8,), ceiling.QUICK))
        return
    if not options.table:
        ceiling.QUEUE.run(journal)
        measure(journal, rounds=12)
    print(loss_table(journal), difference_table(journal), rate_table(journal), sep="\n\n")


if __name__ == "__main__":
    main()
