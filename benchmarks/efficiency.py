"""What every method costs on MiniLM: trained parameters, memory, FLOPs of a step. Counted.

    python -m benchmarks.efficiency          # two minutes; appended to results/efficiency.jsonl

A batch of TREC's size (16 rows of 16 tokens) of random ids. Memory is the peak of allocations above
the weights over the first steps and four boosters; FLOPs are those of forward and backward,
averaged over sixteen boosters. Both are the same on every machine, so both can stand beside scores
taken on a busy one; times are in the scores' own records, and order little.
"""

from collections.abc import Sequence

from benchmarks.runs import command
from benchmarks.runs.journal import Journal
from benchmarks.tables.efficiency import JOURNAL, cost_table, costs


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    command.parser("efficiency", __doc__).parse_args(argv)
    print(cost_table(costs(Journal(JOURNAL))))


if __name__ == "__main__":
    main()
