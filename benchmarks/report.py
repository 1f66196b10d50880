"""The tables and plots of docs/results/index.md, from the recorded runs. Trains nothing.

    python -m benchmarks.report            # rewrites what stands between the page's markers
    python -m benchmarks.report --check    # fails if the page is not what the records say

The page's prose is written by hand; a table stands between ``<!-- table: name -->`` and
``<!-- end -->``. Every table ends with its runs, seeds, wall time and machine.
"""

import sys
from collections.abc import Sequence

from benchmarks.runs import command
from benchmarks.tables.report import PAGE, rebuilt


def main(argv: Sequence[str] | None = None) -> None:
    """Rebuild the page."""
    parser = command.parser("report", __doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="leave the page as it is and exit 1 if it is stale; plots are drawn anew either way",
    )
    options = parser.parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    new = rebuilt(page)
    if options.check and new != page:
        sys.exit(f"{PAGE} is not what the records say: run python -m benchmarks.report")
    PAGE.write_text(new, encoding="utf-8")
    print(f"{PAGE}: {'nothing changed' if new == page else 'rewritten'}")


if __name__ == "__main__":
    main()
