"""What weights of low precision keep of their updates, under each policy of ``merge_precision``.

    python -m benchmarks.merge_precision                    # both parts
    python -m benchmarks.merge_precision --part synthetic   # the first alone
    python -m benchmarks.merge_precision --task trec --seeds 3

Synthetic: 50 rank-1 updates, each as large as 8 steps of Adam can make it (every |B| = 8 lr, A as
at the start), merged into a Gaussian matrix of standard deviation 0.02.

Real: MiniLM on a task, rank 1, 8 steps a booster, 4 of 6 blocks, the rate falling linearly to zero,
with the weights in bfloat16. All runs of a seed share initial values (rounded to bfloat16 in all of
them), head, batches, draws and initial factors; dropout is off. The head is float32 and trained
in full at a rate of its own, so that nothing but the merged weights is rounded in training. Beside
the policies stand everything in float32; the same, rounded at the end; and "kept in float32", which
computes in bfloat16 like the policies and merges into float32.

Over all adapted weights, ``retained`` is the projection of their way on the sum of the run's true
updates, ``cosine`` that of the angle between the two, and ``distance`` how far they end from the
float32 run's, in units of the float32 run's way.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.methods.precision import KAPPA
from benchmarks.runs import command
from benchmarks.runs.precision import Lab, Setting, real_records, synthetic_records
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.subjects.tasks import SMALL, small_task
from benchmarks.tables.precision import real_table, synthetic_table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command.parser("merge_precision", __doc__)
    parser.add_argument("--part", choices=("both", "synthetic", "real"), default="both")
    parser.add_argument("--task", choices=SMALL, default="docstrings")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 1e-3], help="peak rates")
    parser.add_argument(
        "--steps", type=int, default=Setting.steps, help="a multiple of 8 (default: 256)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds (default: 2)")
    command.add_json(parser)
    options = parser.parse_args(argv)
    if options.steps % KAPPA:
        parser.error(f"--steps must be a multiple of {KAPPA}, got {options.steps}")
    parts = ("synthetic", "real") if options.part == "both" else (options.part,)
    with command.needed("merge_precision"):
        task = small_task(options.task) if "real" in parts else None
    print(f"{provenance_line()}\n")
    found: dict[str, Any] = provenance()
    found |= {"command": list(sys.argv[1:] if argv is None else argv)}
    if "synthetic" in parts:
        found["synthetic"] = synthetic_records(options.lr)
        print(f"{synthetic_table(found['synthetic'])}\n", flush=True)
    if task:
        setting = Setting(steps=options.steps)
        print(f"{task}\n{setting}\n", flush=True)
        found |= {"task": task.name, "setting": asdict(setting)}
        found["real"] = real_records(Lab(task, setting), options.lr, range(options.seeds))
        print(real_table(found["real"]))
    command.write(options.json, found)


if __name__ == "__main__":
    main()
