"""Whether a plan comes true: its predicted peaks beside those of real steps on this machine.

    python -m benchmarks.plan_check --json runs/plan_check.json

Each model is trained for two steps by boosters (the first block drawn, the worst draw), by PEFT's
LoRA of rank 8 and in full, with AdamW, while torch's allocator is watched. Both figures are bytes
above the weights: the prediction has nothing of the real run but the model's shapes.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from benchmarks.contenders import Batch, boosted, full, lora
from benchmarks.cost import Size
from benchmarks.memory import peak_memory
from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table
from torch_xgb import plan


@dataclass(frozen=True)
class Check:
    """One prediction and what came."""

    model: str
    method: str
    predicted: int
    measured: int

    @property
    def off(self) -> float:
        """The relative error."""
        return self.predicted / self.measured - 1


def subjects() -> dict[str, tuple[nn.Module, Batch]]:
    """Return three architectures in two dtypes, each with a batch."""
    size, long = Size(batch=2), Size(batch=1, tokens=512)
    ids = torch.randint(1000, (8, 64))
    bert = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
    bert.num_attention_heads = 12
    gpt2 = GPT2Config(n_embd=384, n_layer=8, n_head=6, vocab_size=8192, use_cache=False)
    tokens = {"input_ids": ids, "labels": ids}
    found: dict[str, tuple[nn.Module, Batch]] = {
        "Llama, 12 blocks, float32": (size.model(), _causal(size)),
        "Llama, 12 blocks, bfloat16": (long.model().bfloat16(), _causal(long)),
        "BERT, 6 blocks, float32": (
            BertForSequenceClassification(bert),
            {"input_ids": ids, "labels": ids[:, 0] % 2},
        ),
        "GPT-2, 8 blocks, float32": (GPT2LMHeadModel(gpt2), tokens),
    }
    return found


def _causal(size: Size) -> Batch:
    return {"input_ids": size.ids(), "labels": size.ids()}


def check(name: str, model: nn.Module, batch: Batch) -> list[Check]:
    """Predict and measure the peaks of every method on one model."""
    forecast = plan(model.train(), inputs=batch, residual_device="cpu")
    ours, rank8, *_, everything = forecast.needs
    low = next(model.parameters()).dtype != torch.float32
    rank8 = forecast.needs[2] if low else rank8  # PEFT's adapters are float32

    def run_boosted() -> None:
        contender = boosted(model, batch, forecast.drawn, merge_precision="stochastic")
        contender.step()
        contender.step()
        contender.optimizer.finalize()  # type: ignore[union-attr]

    def run_full() -> None:
        model.requires_grad_(True)
        contender = full(model, batch)
        contender.step()
        contender.step()

    def run_lora() -> None:
        contender = lora(model, batch, 8)
        contender.step()
        contender.step()

    checks = []
    for need, run in ((ours, run_boosted), (everything, run_full), (rank8, run_lora)):
        measured = peak_memory(run, torch.device("cpu"))
        checks.append(Check(name, need.name, round(need.peak - need.weights), measured))
    return checks


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    checks = [c for name, (m, batch) in subjects().items() for c in check(name, m, batch)]
    body = [
        [c.model, c.method, f"{c.predicted / 1e6:.1f}", f"{c.measured / 1e6:.1f}", f"{c.off:+.1%}"]
        for c in checks
    ]
    print(provenance_line() + "\n")
    print(table(["", "method", "predicted MB", "measured MB", "off"], body))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = {**provenance(), "checks": [asdict(c) for c in checks]}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
