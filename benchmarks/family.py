"""The family on a real task: chains of LoRA, rank step-down, base optimizers, DiReFT, beside LoRA.

    python -m benchmarks.family                 # the docstring topics of the demo
    python -m benchmarks.family --task trec     # TREC in ../shared/data/trec

MiniLM, with pooler and classifier trained in full in every run, query and value adapted in every
block as in Chain of LoRA, alpha 16, one linear decay over the whole run, one seed and one rate per
base optimizer: no search, so read differences of a point as noise. FLOPs are those of forward and
backward of all steps, counted on the first batch at every rank a run uses; "pair" is what the pairs
themselves cost, the frozen model's share taken off.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.methods.family import VARIANTS
from benchmarks.runs import command
from benchmarks.runs.family import run
from benchmarks.runs.finetune import Bench, Settings
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.subjects.tasks import SMALL, small_task
from benchmarks.tables.family import family_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("family", __doc__)
    parser.add_argument("--task", choices=SMALL, default="docstrings")
    parser.add_argument("--steps", type=int, default=96, help="K, a multiple of 6 (default: 96)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers down")
    options = parser.parse_args(argv)
    with command.needed("family"):
        task = small_task(options.task)
    settings = Settings(options.steps, length=32, device="cpu")
    print(task, provenance_line(), sep="\n", flush=True)
    bench, records = Bench(task, settings), []
    for variant in VARIANTS:
        records.append(run(bench, variant))
        print(f"{variant.name}: {records[-1]['score']:.3f}", flush=True)
    print(f"\n{family_table(records)}")
    about = {"settings": asdict(settings), "torch": torch.__version__, **provenance()}
    command.write(options.json, {**about, "runs": records})


if __name__ == "__main__":
    main()
