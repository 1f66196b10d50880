"""A causal LM on multiple choice: LoRA r=8 against XGBLoRA r=1, at equal steps and equal tokens.

    python -m benchmarks.causal --tasks ARC-easy    # about an hour of one core; resumes
    python -m benchmarks.causal --quick             # 16 steps, 60 questions

SmolLM2-135M (4-bit-rounded weights, see benchmarks.subjects.smollm) answers ARC-easy and OpenBookQA
by the likelihood of each answer, as EleutherAI's evaluation harness does; COPA is scored beside,
without training on it. All methods see the same batches, so the same tokens; each has two rates, on
100 questions held out of train, seed 0. Products of float32 matrices are rounded to bfloat16 where
the processor can (see benchmarks.runs.finetune). Appended to benchmarks/results/causal.jsonl.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.runs import command
from benchmarks.runs.causal import JOURNAL, QUICK, Size
from benchmarks.runs.journal import Journal
from benchmarks.subjects import smollm
from benchmarks.subjects.choices import FOLDERS, questions
from benchmarks.tables.causal import causal_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command.parser("causal", __doc__)
    parser.add_argument("--quick", action="store_true", help="a subset, by the same code")
    parser.add_argument("--tasks", nargs="+", choices=tuple(FOLDERS), default=tuple(FOLDERS))
    options = parser.parse_args(argv)
    size = replace(QUICK if options.quick else Size(), tasks=tuple(options.tasks))
    with command.needed("causal"):
        smollm.folder()
        for name in (*FOLDERS, "COPA"):
            questions(name, "test")
    torch.set_float32_matmul_precision("medium")
    print(causal_table(size, Journal(JOURNAL)))


if __name__ == "__main__":
    main()
