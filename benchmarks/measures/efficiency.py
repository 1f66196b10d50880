"""What a step of a method costs on MiniLM. Counted."""

import statistics
from functools import partial

import torch

from benchmarks.measures.flops import count_flops
from benchmarks.measures.memory import peak_memory
from benchmarks.methods.method import Method, Trainee
from benchmarks.subjects import minilm

ROWS, TOKENS, BOOSTERS = 16, 16, 16


def measure(method: Method) -> dict[str, int]:
    """Count one method's step."""
    model = minilm.classifier(range(6), 0).train()
    total = sum(parameter.numel() for parameter in model.parameters())
    head = sum(p.numel() for name, p in model.named_parameters() if minilm.is_head(name))
    batch = _batch()
    peak = peak_memory(partial(_train, model, method, batch), torch.device("cpu"))
    trainee = method.build(minilm.classifier(range(6), 0).train(), 1e-3, 0, **method.options)
    flops = []
    for _ in range(BOOSTERS):
        flops.append(sum(count_flops(lambda: trainee.model(**batch).loss.backward()).values()))
        trainee.optimizer.zero_grad()
        trainee.next_booster()
    return {
        "trainable": trainee.trainable,
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
