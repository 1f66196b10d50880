"""What is asked of an accelerator: where the host waits for it, what is copied, what is launched.

    python -m benchmarks.syncs                    # seconds; needs no accelerator

A small stack of residual blocks is trained on a device that is none: its tensors say that they are
elsewhere and are computed with on the CPU, and whatever asks such a device for something is counted
(``benchmarks.measures.remote``). So the counts are those of the library's calls, the same on every
machine; how long they take, they do not say.

A *wait* is a number read of the device, or a copy that the host waits for: until then it does
nothing else, and the device runs out of work. A *late look* is at what was asked for a step
before: copied without waiting into pinned memory, and there by then as a rule. *Copies* are those
to the device + those from it. *Launches* are operations; views are none, one on a list of tensors
(``torch._foreach_*``) is one. The base optimizer's own are left out.

A step is the second of a booster of 2 blocks (4 linear maps) in 4, a merge the step that ends it
with everything that follows, the next draw included, and a draw that part of it alone.
"""

from collections.abc import Sequence

from benchmarks.measures.syncs import CASES, asked
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.tables.syncs import syncs_table


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = command.parser("syncs", __doc__)
    command.add_json(parser)
    options = parser.parse_args(argv)
    rows = {
        name: {what: found.row for what, found in asked(**case).items()}
        for name, case in CASES.items()
    }
    print(f"{provenance_line()}\n\n{syncs_table(rows)}")
    command.write(options.json, {**provenance(), "rows": rows})


if __name__ == "__main__":
    main()
