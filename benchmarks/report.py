"""The tables and plots of the pages in docs/results, from the recorded runs. Trains nothing.

    python -m benchmarks.report            # rewrites what stands between the pages' markers
    python -m benchmarks.report --check    # fails if a page is not what the records say

The pages' prose is written by hand; a table stands between ``<!-- table: name -->`` and
``<!-- end -->``. Every table ends with its runs, seeds, wall time and machine.
"""

import sys
from collections.abc import Sequence

from benchmarks.runs import command
from benchmarks.tables.report import pages, rebuilt


def main(argv: Sequence[str] | None = None) -> None:
    """Rebuild the pages."""
    parser = command.parser("report", __doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="leave pages as they are and exit 1 if one is stale; plots are drawn anew either way",
    )
    options = parser.parse_args(argv)
    old = {path: path.read_text(encoding="utf-8") for path in pages()}
    new = {path: rebuilt(page) for path, page in old.items()}
    stale = [path for path in old if new[path] != old[path]]
    if options.check and stale:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"{names}: not what the records say: run python -m benchmarks.report")
    for path in stale:
        path.write_text(new[path], encoding="utf-8")
        print(f"{path}: rewritten")
    if not stale:
        print("nothing changed")


if __name__ == "__main__":
    main()
