"""Every model type of the installed transformers: does it train, and merge exactly?

    python -m benchmarks.zoo                       # about half an hour on two cores; can be stopped
    python -m benchmarks.zoo --types falcon clip   # some types alone

Each type is made small (benchmarks/subjects/shrunk.py) with random weights and given inputs that
its forward accepts; what cannot be made so is listed with the reason and counted apart. Types that
share a class are one. In a process of its own, with limits of memory and time, it is trained for
two steps by boosters of rank 1 in every block, merged, and compared: the outputs before and after
the merge may differ by 1e-5 of the largest, in float32. Where a message says what to set
(unused="skip"), that is set and it is tried again. Beside it, PEFT's LoRA is asked to adapt the
same model with target_modules="all-linear" and to train a step.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.runs import command
from benchmarks.runs.journal import RESULTS, Journal
from benchmarks.runs.provenance import provenance_line
from benchmarks.runs.zoo import examine
from benchmarks.subjects.shrunk import model_types
from benchmarks.tables import zoo


def main(argv: Sequence[str] | None = None) -> None:
    """Examine what is not in the journal yet, and print."""
    parser = command.parser("zoo", __doc__)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="these alone (default: all)")
    parser.add_argument(
        "--journal", type=Path, default=RESULTS / "zoo.jsonl", help="default: results/zoo.jsonl"
    )
    options = parser.parse_args(argv)
    with command.needed("zoo"):
        journal = Journal(options.journal)
    types = options.types or model_types()
    records = [_once(journal, name) for name in types]
    for part in (zoo.whole, zoo.not_made, zoo.refused, zoo.counts):
        print(part(records), end="\n\n")
    print(provenance_line())


def _once(journal: Journal, name: str) -> dict[str, object]:
    return journal.once({"type": name}, lambda: examine(name))


if __name__ == "__main__":
    main()
