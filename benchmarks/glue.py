"""GLUE in kind: every method on every task at the same number of steps, with the same search.

    python -m benchmarks.glue                     # the full table; goes on where it stopped
    python -m benchmarks.glue --quick             # 2 tasks, 4 methods, 16 steps: 15 minutes
    python -m benchmarks.glue --tasks RTE CB --methods "XGBLoRA r=1" "PEFT LoRA r=8"
    python -m benchmarks.glue --own               # a rate for every task, not one for all

MiniLM (all-MiniLM-L6-v2, 6 blocks, 22.7M parameters). Each method's learning rate is searched
first: three rates on rows held out of TREC's and SST-2's train parts, seed 0, the best mean of
both; with --own on rows held out of each task's train part, for this task. At that rate every seed
is scored on the task's own dev or test rows. K is the same for all methods: 300 steps of 16 rows,
and three times that for CoLA, which no method learns in 300. Runs are appended to
benchmarks/results/runs.jsonl, and what is recorded there is not run again (--quick keeps its own in
runs/quick.jsonl). A task whose rows are missing is left out, with the reason; one that rates of
others are searched on cannot be.
"""

from collections.abc import Sequence

from benchmarks.methods.minilm import compared
from benchmarks.runs import command
from benchmarks.runs.glue import QUICK, Size, run
from benchmarks.runs.journal import Journal
from benchmarks.runs.sweep import QUICK_RUNS, RUNS
from benchmarks.subjects import minilm
from benchmarks.subjects.tasks import TASKS
from benchmarks.tables.glue import rate_table, score_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("glue", __doc__)
    parser.add_argument("--quick", action="store_true", help="a subset, by the same code")
    parser.add_argument("--own", action="store_true", help="a rate for every task, its own")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), metavar="TASK")
    parser.add_argument("--methods", nargs="+", choices=tuple(compared(1)), metavar="METHOD")
    parser.add_argument("--steps", type=int, help=f"optimizer steps (default: {Size.steps})")
    parser.add_argument("--seeds", type=int, help=f"how many seeds (default: {Size.seeds})")
    options = parser.parse_args(argv)
    size = QUICK if options.quick else Size()
    given = {name: getattr(options, name, None) or value for name, value in vars(size).items()}
    size = Size(**given | ({"searched": ()} if options.own else {}))
    with command.needed("glue"):
        minilm.folder()
    journal = Journal(QUICK_RUNS if options.quick else RUNS)
    run(size, journal)
    print(score_table(size, journal), rate_table(size, journal), sep="\n\n")


if __name__ == "__main__":
    main()
