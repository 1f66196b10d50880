"""What the library withstands: faults by the hundred, and what became of each.

    python -m benchmarks.reliability              # every part: some hours of one core
    python -m benchmarks.reliability --quick      # a minute or two
    python -m benchmarks.reliability disk drift   # some parts

database       PyTorch's database of optimizers, each of its inputs boosted
lives          hypothesis lives the lives of runs: any order of calls, models and settings
interruptions  an exception at any line of step(), merge() and finalize()
crashes        SIGKILL at random moments: plain loop, ledger, Trainer, ZeRO 1 and 3
disk           a folder that is full, read-only, deleted, or another's
hostile        files that are cut, flipped, foreign, endless, or declare what no machine has
endurance      20,000 steps, 2,500 boosters: memory, live objects, time a step, files
drift          10,000 merges in each precision against float64

Each prints how many faults were put in, how many were survived (everything is what it would have
been), refused (an error of ours, nothing changed), lost (there before and not after) and wrong
(different without a word, or said by another library). The command fails if any was lost or wrong.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from types import ModuleType

from benchmarks.reliability.apart import CAN_FORK
from benchmarks.reliability.counts import Counts
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line

PARTS = {
    "database": "database",
    "lives": "stateful",
    "interruptions": "interruptions",
    "crashes": "crashes",
    "disk": "disk",
    "hostile": "hostile",
    "endurance": "endurance",
    "drift": "drift",
}


def part(name: str) -> ModuleType:
    """Return a part's module."""
    return importlib.import_module(f"benchmarks.reliability.{PARTS[name]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 if something was lost or wrong."""
    parser = command.parser("reliability", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few faults of each kind")
    parser.add_argument("--seed", type=int, default=0, help="what the faults are drawn from")
    command.add_json(parser)
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if not CAN_FORK:
        parser.error("this needs a system with fork()")
    print(provenance_line(), flush=True)
    all_of_them, figures = Counts(), {}
    for name in args.parts or PARTS:
        began = time.monotonic()
        counts = part(name).run(args.quick, args.seed)
        seconds = time.monotonic() - began
        print(f"{name:14}{counts.line()}  ({seconds:.0f} s)", flush=True)
        for kind in ("lost", "wrong"):
            for line in getattr(counts, kind)[:40]:
                print(f"    {kind}: {line}", flush=True)
        figures[name] = {**counts.plain(), "seconds": seconds}
        all_of_them.add(counts)
    all_of_them.figures.clear()
    print(f"{'in all':14}{all_of_them.line()}")
    told = {"quick": args.quick, "seed": args.seed, **provenance()}
    command.write(args.json, {**told, "parts": figures, "all": all_of_them.plain()})
    return 0 if all_of_them.good else 1


if __name__ == "__main__":
    sys.exit(main())
