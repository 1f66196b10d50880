"""What holds on an accelerator, and how fast it is there: run once where there is one.

    python -m benchmarks.on_gpu                # minutes; without a GPU it says so and ends

Checks, each a line with what was seen: draws, first factors and the random numbers of entries are
the CPU's to the bit (*draws*), merges of the same products too (*merges*), losses but for rounding
(*losses*); a step waits for nothing and a merge once, as torch's own ``set_sync_debug_mode`` tells
(*waits*); a gradient that is not finite does no harm (*late*); ordinary ways to train come to an
end (*routes*). Then merges are measured against memory traffic (benchmarks.merge_cost), and
compiled and eager steps beside PEFT's LoRA (benchmarks.compiled). The exit code is 1 if a check
does not hold.
"""

import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.measures.on_device import CHECKS, Found
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line


def check_all(device: torch.device) -> dict[str, Found]:
    """Run every check; one that raises does not hold."""
    found = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(device)
        except Exception:
            found[name] = Found(False, traceback.format_exc(limit=3))
        print(f"{name:8} {'held' if found[name].held else 'DID NOT HOLD'}: {found[name].says}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure and print."""
    parser = command.parser("on_gpu", __doc__)
    parser.add_argument("--no-speed", action="store_true", help="checks alone")
    command.add_json(parser)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU that torch can use here: nothing was run, and nothing is said about one")
        return
    device = torch.device("cuda")
    card = torch.cuda.get_device_name(device)
    print(f"{card}; {provenance_line()}\n", flush=True)
    found = check_all(device)
    figures: Mapping[str, Any] = {name: asdict(one) for name, one in found.items()}
    command.write(options.json, {"card": card, **provenance(), "checks": figures})
    if not options.no_speed:
        for name, more in (("merge_cost", ["--width", "4096"]), ("compiled", [])):
            print(flush=True)
            run = [sys.executable, "-m", f"benchmarks.{name}", "--device", "cuda", *more]
            subprocess.run(run, check=False)
    if not all(one.held for one in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
