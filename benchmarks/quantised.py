"""Boosters and a quantised base: what merging into it would keep, and training beside it.

    python -m benchmarks.quantised --json runs/quantised.json        # about twenty minutes
    python -m benchmarks.quantised --only beside                     # the second part alone, which
                                                                     # can be stopped and goes on

The second part trains MiniLM on TREC: boosters merged into bfloat16 weights, the same boosters
beside a base in NF4 (bitsandbytes' Linear4bit), with room for sums of rank 28 and of rank 8, and
QLoRA of rank 8. The rates are each method's best on TREC in the tables of scores. Memory is what
the encoder's linear maps keep, and the most held beside them: factors, gradients, AdamW's state,
residuals, sums; the head is the same for all and left out. ``lost`` is how far the sums are from
the updates' true sum, in units of that.

The first part is why nothing is merged into such weights. MiniLM is trained in float32 on the
topics of Python's docstrings (rank 1, 8 steps a booster, 4 of 6 blocks, the rate falling linearly
to zero), and every merged update is written down. The same updates are then merged into the same
weights in NF4 (blocks of 64, as bitsandbytes' Linear4bit keeps them) and in int8 (a scale a row, as
Linear8bitLt does), in these ways:

- requantised: at each merge the weight is dequantised, added to, and quantised anew;
- requantised at random: the same, rounded up or down so that the mean is right;
- with a residual: the same, what did not fit kept beside it in bfloat16 for the next merge;
- quantised at the end: merged into bfloat16 by the library ("residual"), and quantised once;
- beside: the base stays as it is, and all updates together are an adapter beside it (the ledger's
  ``chain.to_peft``), here of rank 8, the nearest to their sum.

``retained`` is the projection of what became of the weights on the true sum of updates, ``cosine``
that of the angle, ``distance`` how far the weights are from the trained float32 ones, in units of
the way those went. Loss and score are on 512 texts held out. Bits are those a weight takes.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import command
from benchmarks.runs.beside import Bench
from benchmarks.runs.journal import RESULTS, Journal
from benchmarks.runs.precision import Lab, Setting
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.runs.quantised import records, train
from benchmarks.subjects.docstrings import docstring_task
from benchmarks.subjects.tasks import load_task
from benchmarks.tables.precision import beside_table, quantised_table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command.parser("quantised", __doc__)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 1e-3, 5e-3], help="rates")
    parser.add_argument("--steps", type=int, default=256, help="a multiple of 8 (default: 256)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default: 1)")
    parser.add_argument("--only", choices=("merged", "beside"), help="one part alone")
    parser.add_argument(
        "--journal", type=Path, default=RESULTS / "beside.jsonl", help="of the second part"
    )
    command.add_json(parser)
    options = parser.parse_args(argv)
    parts = {"merged": _merged, "beside": _beside}
    found = {name: part(options) for name, part in parts.items() if options.only in (None, name)}
    command.write(options.json, {"steps": options.steps, **provenance(), **found})


def _merged(options: Namespace) -> list[dict[str, Any]]:
    with command.needed("quantised"):
        lab = Lab(docstring_task(), Setting(steps=options.steps))
    print(f"{lab.task}\n{lab.setting}, seeds {options.seeds}; {provenance_line()}\n", flush=True)
    found = [
        {"lr": lr, "seed": seed, **record}
        for lr in options.lr
        for seed in range(options.seeds)
        for record in records(lab, train(lab, lr, seed))
    ]
    print(quantised_table(found))
    return found


def _beside(options: Namespace) -> list[dict[str, Any]]:
    with command.needed("quantised"):
        bench = Bench(load_task("TREC"), Setting(steps=options.steps))
        print(
            f"{bench.task}\n{bench.setting}, seeds {options.seeds}; {provenance_line()}\n",
            flush=True,
        )
        found = []
        for record in bench.records(options.seeds, Journal(options.journal)):
            found.append(record)
            print(record, flush=True)
    print(beside_table(found))
    return found


if __name__ == "__main__":
    main()
