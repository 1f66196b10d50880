"""Do several processes train what one does, by every route, and what do they send each other?

    python -m benchmarks.distributed                       # every route that is installed
    python -m benchmarks.distributed --route DDP --steps 40

A small stack of residual blocks is trained on CPU over gloo, each step's batch split among the
processes. ``loss difference`` is the largest, over all steps, from the plain model in one process.
``in merges`` counts collectives called while a booster is merged and the next one begun. ``sent``
is what one process hands to all-reduce for the factors, a step; ``factors`` is their size. With one
process nothing need be sent, and some routes do it all the same.
"""

import sys
from collections.abc import Sequence

from benchmarks.methods.routes import KAPPA, ROUTES
from benchmarks.runs import command
from benchmarks.runs.processes import missing, run
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.tables.distributed import compare, route_table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command.parser("distributed", __doc__)
    parser.add_argument("--steps", type=int, default=14, help="(default: 14, three boosters)")
    parser.add_argument("--route", action="append", choices=ROUTES, help="one or more of them")
    command.add_json(parser)
    options = parser.parse_args(argv)
    print(
        f"{provenance_line()}; gloo, one thread a process, kappa {KAPPA}, {options.steps} steps\n"
    )
    alone = run("single", 1, options.steps)
    records = []
    for name in options.route or ROUTES:
        if reason := missing(name):
            print(f"skipped {name}: {reason}")
            continue
        for world_size in (1, 2):
            for dtype, ranks in run(name, world_size, options.steps).items():
                about = {"route": name, "world size": world_size, "dtype": dtype}
                records.append(about | compare(ranks, alone[dtype][0]))
        print(f"measured {name}", file=sys.stderr, flush=True)
    print(route_table(records))
    found = provenance() | {"steps": options.steps, "kappa": KAPPA, "routes": records}
    command.write(options.json, found)


if __name__ == "__main__":
    main()
