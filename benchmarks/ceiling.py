"""Where the rank is the ceiling: a byte language model from random weights.

    python -m benchmarks.ceiling                  # the whole queue; goes on where it stopped
    python -m benchmarks.ceiling --quick          # every method for 8 steps, kept apart
    python -m benchmarks.ceiling --table          # what is recorded, nothing trained

Four blocks of width 128 read the source of Python's standard library, 8 x 64 bytes a step;
embeddings, head and norms are trained in full by every method at the same rate, the blocks'
matrices only through the method. Each method's rate is the best of three on held-out files at
K = 400, seed 0, and of a fourth where the best is at an end of the three. The queue begins with
what matters most: rank 1 at K = 1,600 with three seeds, then K = 6,400, then the rest. Runs are
appended to benchmarks/results/ceiling.jsonl.
"""

from collections.abc import Sequence

from benchmarks.runs import ceiling, command
from benchmarks.runs.journal import Journal
from benchmarks.subjects import bytelm
from benchmarks.tables.ceiling import difference_table, loss_table, measure


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("ceiling", __doc__)
    parser.add_argument("--quick", action="store_true", help="short runs, by the same code")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    with command.needed("ceiling"):
        bytelm.text()
    journal = Journal(ceiling.QUICK_JOURNAL if options.quick else ceiling.JOURNAL)
    if options.quick:
        ceiling.run(ceiling.QUICK, journal, searched=4)
        measure(journal, rounds=2)
        print(loss_table(journal, lengths=(8,), searched=4))
        return
    if not options.table:
        ceiling.run(ceiling.QUEUE, journal)
        measure(journal, rounds=12)
    print(loss_table(journal), difference_table(journal), sep="\n\n")


if __name__ == "__main__":
    main()
