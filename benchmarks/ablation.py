"""One setting of XGBLoRA at a time, the others at their defaults, on two tasks.

    python -m benchmarks.ablation                     # everything; goes on where it stopped
    python -m benchmarks.ablation --quick             # the same, 16 steps, one seed
    python -m benchmarks.ablation --only kappa r

The rate is the one that the default setting's search found (XGBLoRA r=1, as benchmarks.glue): a
search for every value would cost four times as much, so a value that needs a rate of its own is
treated harshly here; where that was suspected, benchmarks.dynamics has searched. κ = K is one
booster, merged at the end.
"""

from collections.abc import Sequence

from benchmarks.methods.ablation import GRIDS, TASK_NAMES, XGBLORA, method
from benchmarks.runs import command
from benchmarks.runs.journal import Journal
from benchmarks.runs.sweep import QUICK_RUNS, RUNS, Run, common_rate, common_searches, work
from benchmarks.subjects import minilm
from benchmarks.subjects.tasks import TASKS
from benchmarks.tables.ablation import ablation_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("ablation", __doc__)
    parser.add_argument("--quick", action="store_true", help="16 steps, one seed")
    parser.add_argument("--only", nargs="+", choices=tuple(GRIDS), default=tuple(GRIDS))
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=TASK_NAMES)
    parser.add_argument("--steps", type=int, default=300, help="(default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args(argv)
    if options.quick:
        options.steps, options.seeds = 16, 1
    with command.needed("ablation"):
        minilm.folder()
    journal = Journal(QUICK_RUNS if options.quick else RUNS)
    work(common_searches(TASK_NAMES, XGBLORA, options.steps), journal)
    lr = common_rate(TASK_NAMES, XGBLORA, options.steps, journal)
    assert lr is not None
    for task in options.tasks:
        for seed in range(options.seeds):  # every value once before any twice
            for setting in options.only:
                values = [method(setting, value) for value in GRIDS[setting]]
                work([Run(task, m, lr, seed, options.steps) for m in values], journal)
    for setting in options.only:
        args = (options.tasks, options.steps, options.seeds, journal)
        print(ablation_table(setting, *args), end="\n\n")


if __name__ == "__main__":
    main()
