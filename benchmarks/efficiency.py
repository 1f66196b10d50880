"""What every method costs on MiniLM: trained parameters, memory, FLOPs of a step. Counted.

    python -m benchmarks.efficiency          # two minutes; appended to results/efficiency.jsonl

A batch of TREC's size (16 rows of 16 tokens) of random ids. Memory is the peak of allocations above
the weights over the first steps and four boosters; FLOPs are those of forward and backward,
averaged over sixteen boosters. Both are the same on every machine, so both can stand beside scores
taken on a busy one; times are in the scores' own records, and order little.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks import minilm
from benchmarks.cost import count_flops
from benchmarks.journal import RESULTS, Journal, Record
from benchmarks.memory import peak_memory
from benchmarks.methods import Method, Trainee, compared
from benchmarks.table import table

JOURNAL = RESULTS / "efficiency.jsonl"
ROWS, TOKENS, BOOSTERS = 16, 16, 16


def measure(method: Method) -> Record:
    """Count one method's step."""
    model = minilm.classifier(range(6), 0).train()
    total = sum(parameter.numel() for parameter in model.parameters())
    head = sum(p.numel() for name, p in model.named_parameters() if minilm.is_head(name))
    batch = _batch()
    peak = peak_memory(partial(_train, model, method, batch), torch.device("cpu"))
    trainee = method.build(minilm.classifier(range(6), 0).train(), 1e-3, 0, **method.options)
    groups = trainee.optimizer.param_groups
    flops = []
    for _ in range(BOOSTERS):
        flops.append(sum(count_flops(lambda: trainee.model(**batch).loss.backward()).values()))
        trainee.optimizer.zero_grad()
        trainee.next_booster()
    return {
        "trainable": sum(p.numel() for group in groups for p in group["params"]),
        "head": head,
        "total": total,
        "peak": peak,
        "flops": round(statistics.fmean(flops)),
    }


def _batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 2000, (ROWS, TOKENS), generator=generator)
    return {"input_ids": ids, "labels": torch.arange(ROWS) % 6}


def _train(model: torch.nn.Module, method: Method, batch: dict[str, torch.Tensor]) -> None:
    """Take the steps whose memory is looked at."""
    trainee: Trainee = method.build(model, 1e-3, 0, **method.options)
    for _ in range(4):
        trainee.model(**batch).loss.backward()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad()
        trainee.next_booster()


def costs(journal: Journal, steps: int = 300) -> dict[str, Record]:
    """Count what the journal lacks, and return every method's record."""
    return {
        name: journal.once({**method.identity, "rows": ROWS, "tokens": TOKENS},
                           partial(measure, method))
        for name, method in compared(steps).items()
    }  # fmt: skip


def cost_table(found: dict[str, Record]) -> str:
    """Lay the counts out, FLOPs in units of full fine-tuning's."""
    whole = found["full fine-tuning"]["flops"]
    rows = [
        [
            name,
            f"{r['trainable']:,}",
            f"{1e3 * (r['trainable'] - r['head']) / r['total']:.2f} ‰",
            f"{r['peak'] / 1e6:.0f} MB",
            f"{r['flops'] / whole:.2f}",
        ]
        for name, r in found.items()
    ]
    head = ["method", "trained", "beside the head", "memory", "FLOPs a step / full"]
    return table(head, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    print(cost_table(costs(Journal(JOURNAL))))


if __name__ == "__main__":
    main()
