"""What ``torch_xgb.plan`` foretells: of real steps here, and of the papers' models on a card."""

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.measures.memory import peak_memory
from benchmarks.methods.contenders import boosted, full, lora
from benchmarks.subjects.classification import Batch
from torch_xgb import plan
from torch_xgb.forecast.needs import RESERVE, Need

MODELS = ("llama3-8b", "mistral-7b", "llama-13b")
LENGTH = 512


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


def check(name: str, model: nn.Module, batch: Batch) -> list[Check]:
    """Predict and measure the peaks of every method on one model."""
    forecast = plan(model.train(), inputs=batch, layers_per_booster=0.3, residual_device="cpu")
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


def on_card(card: float) -> list[dict[str, object]]:
    """Plan every model with and without checkpointing."""
    found: list[dict[str, object]] = []
    for model in MODELS:
        for checkpointing in (False, True):
            shorter, longer = (
                plan(
                    model,
                    length=length,
                    layers_per_booster=8,
                    merge_precision="stochastic",
                    checkpointing=checkpointing,
                )
                for length in (LENGTH, 2 * LENGTH)
            )
            for need, more in zip(shorter.needs, longer.needs, strict=True):
                row: dict[str, object] = {"model": model, "checkpointing": checkpointing}
                found.append(row | _fit(need, more, shorter.parameters, card))
    return found


def _fit(need: Need, more: Need, parameters: int, card: float) -> dict[str, object]:
    """Say how many tokens fit, from what one length and its double need."""
    here, there = (n.saved + n.transient for n in (need, more))
    per_token = (there - here) / LENGTH
    room = (card - RESERVE) * 2**30 - need.peak
    return {
        "method": need.name,
        "per_mille": 1e3 * need.trained / parameters,
        "weights_gib": need.weights / 2**30,
        "mib_per_token": per_token / 2**20,
        "tokens": max(0, LENGTH + int(room // per_token)),
    }
