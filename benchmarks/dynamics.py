"""What a restart costs, and what a booster could do instead: one part at a time.

    python -m benchmarks.dynamics                     # two tasks, three seeds; resumes
    python -m benchmarks.dynamics --only "A kept" "A = uᵀG"
    python -m benchmarks.dynamics --tasks TREC --seeds 1
    python -m benchmarks.dynamics --crossing          # K = 300 to 3,600 instead

Rank-1 boosters of 8 steps on all six blocks of MiniLM, so that nothing but the booster's start and
steps differs from LoRA, which is there with ranks 8 and 1, as are full fine-tuning, BitFit and the
head alone. Every variant has two rates and keeps the one with the lower loss on the scored rows:
even, but a little high. See ``benchmarks.methods.bases.Dynamics`` for what each part does.
"""

from collections.abc import Sequence

from benchmarks.methods.dynamics import CROSSING, CURVES, TASK_NAMES, variants
from benchmarks.runs import command
from benchmarks.runs.journal import Journal
from benchmarks.runs.sweep import RUNS, at_every_rate, work
from benchmarks.subjects import minilm
from benchmarks.subjects.tasks import TASKS
from benchmarks.tables.dynamics import dynamics_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("dynamics", __doc__)
    named = variants()
    parser.add_argument("--only", nargs="+", choices=tuple(named), metavar="VARIANT")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=TASK_NAMES)
    parser.add_argument("--steps", type=int, default=300, help="(default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--crossing", action="store_true", help="K = 300, 900, 1,800, 3,600")
    options = parser.parse_args(argv)
    with command.needed("dynamics"):
        minilm.folder()
    journal = Journal(RUNS)
    lengths = CROSSING if options.crossing else (options.steps,)
    chosen = options.only or (CURVES if options.crossing else tuple(named))
    for steps in lengths:
        for task in options.tasks:
            for seed in range(options.seeds):  # every variant once before any twice
                for name in chosen:
                    found = at_every_rate(task, named[name], steps, seed + 1)
                    work([run for run in found if run.seed == seed], journal)
    for steps in lengths:
        print(
            f"K = {steps}", dynamics_table(options.tasks, steps, options.seeds, journal), sep="\n"
        )


if __name__ == "__main__":
    main()
