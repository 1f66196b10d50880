"""The papers' regime: MiniLM trained for thousands of steps, and followed along the way.

    python -m benchmarks.regime                   # the whole queue; goes on where it stopped
    python -m benchmarks.regime --quick           # one task, 8 steps, kept apart
    python -m benchmarks.regime --tasks TREC --steps 600 --seeds 3 --rows 200

The papers train GLUE for 30 to 80 epochs, MRPC for 7,000 steps and CoLA for 42,000, where
benchmarks.glue takes 300 and 900. The five main methods, each at the rate that ``benchmarks.glue
--own`` found for the task and at half of it, on train less the rows it was found on; which of the
two is the better is read on those rows, seed 0. Score, loss and calibration (expected calibration
error) at six checkpoints, the last one and the best by the loss on the rows held out. Runs are
appended to benchmarks/results/regime.jsonl.
"""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.runs import command, regime
from benchmarks.runs.journal import Journal
from benchmarks.subjects import minilm
from benchmarks.subjects.tasks import TASKS, load_task
from benchmarks.tables.regime import regime_tables


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("regime", __doc__)
    parser.add_argument("--quick", action="store_true", help="one task, by the same code")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), metavar="TASK")
    parser.add_argument("--steps", type=int, help="K of those tasks (default: the queue's)")
    parser.add_argument("--seeds", type=int, default=1, help="of those tasks (default: 1)")
    parser.add_argument("--rows", type=int, help="of train, for those tasks (default: all)")
    parser.add_argument("--times", nargs="+", type=float, default=regime.RATES, metavar="X",
                        help="of the rate found in 300 steps (default: 1 and 0.5)")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=regime.METHODS, metavar="METHOD")
    options = parser.parse_args(argv)
    queue = regime.QUICK if options.quick else regime.QUEUE
    if options.tasks and options.steps:
        rest = {"seeds": options.seeds, "times": options.times, "rows": options.rows}
        stage = regime.Stage("", options.steps, **rest)
        queue = tuple(replace(stage, task=task) for task in options.tasks)
    elif options.tasks:
        queue = tuple(stage for stage in queue if stage.task in options.tasks)
    with command.needed("regime"):
        minilm.folder()
        for task in {stage.task for stage in queue}:
            load_task(task)
    journal = Journal(regime.QUICK_JOURNAL if options.quick else regime.JOURNAL)
    if not options.table:
        regime.run(queue, journal, options.only)
    print(regime_tables(queue, journal))


if __name__ == "__main__":
    main()
