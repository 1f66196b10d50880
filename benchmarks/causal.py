"""A causal LM: multiple choice, and the perplexity of text of a domain, at equal steps and tokens.

    python -m benchmarks.causal --tasks ARC-easy    # about an hour of one core; resumes
    python -m benchmarks.causal --tasks docstrings  # an hour for K = 96, seed 0; resumes
    python -m benchmarks.causal --quick             # 16 steps, 60 questions; 8 steps of text

SmolLM2-135M (4-bit-rounded weights, see benchmarks.subjects.smollm) answers ARC-easy and OpenBookQA
by the likelihood of each answer, as EleutherAI's evaluation harness does; COPA is scored beside,
without training on it. *docstrings* is the running text of those of Python's library. All methods
see the same batches, so the same tokens; each has two rates, on 100 questions held out of train or
after 48 steps on texts held out, seed 0. Products of float32 matrices are rounded to bfloat16 where
the processor can (see benchmarks.runs.finetune). Appended to benchmarks/results/causal.jsonl and
domain.jsonl.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.runs import command, domain
from benchmarks.runs.causal import JOURNAL, QUICK, QUICK_JOURNAL, Size
from benchmarks.runs.journal import Journal
from benchmarks.subjects import prose, smollm
from benchmarks.subjects.choices import FOLDERS, questions
from benchmarks.tables.causal import causal_table
from benchmarks.tables.domain import domain_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("causal", __doc__)
    parser.add_argument("--quick", action="store_true", help="a subset, by the same code")
    every = (*FOLDERS, domain.TASK)
    parser.add_argument("--tasks", nargs="+", choices=every, default=every, metavar="TASK")
    options = parser.parse_args(argv)
    asked = tuple(task for task in options.tasks if task in FOLDERS)
    with command.needed("causal"):
        smollm.folder()
        for name in (*asked, *["COPA"] * bool(asked)):
            questions(name, "test")
        if domain.TASK in options.tasks:
            prose.texts()
    torch.set_float32_matmul_precision("medium")
    if asked:
        size = replace(QUICK if options.quick else Size(), tasks=asked)
        print(causal_table(size, Journal(QUICK_JOURNAL if options.quick else JOURNAL)))
    if domain.TASK in options.tasks:
        _domain(options.quick)


def _domain(quick: bool) -> None:
    size = domain.QUICK if quick else domain.Size()
    journal = Journal(domain.QUICK_JOURNAL if quick else domain.JOURNAL)
    domain.run(size, journal)
    print(domain_table(size, journal))


if __name__ == "__main__":
    main()
