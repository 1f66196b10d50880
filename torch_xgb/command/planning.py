"""``torch-xgb plan``: what a step needs, before training."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch

from torch_xgb.command.answer import Answer, Commands, command
from torch_xgb.forecast.needs import Forecast, Need
from torch_xgb.forecast.plan import plan
from torch_xgb.forecast.shapes import KNOWN
from torch_xgb.settings import Settings

__all__ = ["add_plan"]

_RESIDUAL = (
    "The residual is what merges into 16 bits carry over, of the targets' size: --residual-device "
    "cpu takes it off the card, --merge-precision stochastic does without."
)


def add_plan(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    usage, text = "%(prog)s MODEL [options]", "predict a step's memory and FLOPs"
    planned = command(commands, "plan", _plan, text, usage=usage)
    planned.add_argument(
        "model", metavar="MODEL", help=f"a folder with a config.json, or one of {', '.join(KNOWN)}"
    )
    dtypes = ("float32", "bfloat16", "float16")
    add = planned.add_argument
    add("--batch", type=int, default=1, help="rows (default: 1)")
    add("--length", type=int, default=512, help="tokens a row (default: 512)")
    add("--dtype", choices=dtypes, default="bfloat16", help="of the weights (default: bfloat16)")
    add("--checkpointing", action="store_true", help="recompute each block in backward")
    add("--card", type=float, metavar="GIB", help="say what fits a card of so many GiB")
    add("--r", type=int, default=1, help="the boosters' rank (default: 1)")
    drawn = Settings().layers_per_booster
    share = f"blocks a booster draws: a number, or a share such as 0.25 (default: {drawn})"
    layers = ("--layers-per-booster", "--layers")
    add(*layers, type=_count_or_share, default=drawn, metavar="L", help=share)
    add("--lora-r", type=int, default=8, help="the rank of the LoRA beside it (default: 8)")
    add("--merge-precision", default="auto", help="of 16-bit weights (default: auto)")
    add("--residual-device", help="'cpu' takes the residual off the card")


def _count_or_share(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _plan(options: argparse.Namespace) -> Answer:
    """Predict what a step needs, from shapes alone, for XGBLoRA, LoRA and full fine-tuning."""
    forecast = plan(
        options.model,
        batch=options.batch,
        length=options.length,
        dtype=getattr(torch, options.dtype),
        checkpointing=options.checkpointing,
        card=options.card,
        r=options.r,
        layers_per_booster=options.layers_per_booster,
        lora_r=options.lora_r,
        merge_precision=options.merge_precision,
        residual_device=options.residual_device,
    )
    needs = [_need(forecast, need) for need in forecast.needs]
    text = f"{forecast}\n\n{_RESIDUAL}" if forecast.needs[0].residual else str(forecast)
    return Answer(text, {**dataclasses.asdict(forecast), "needs": needs})


def _need(forecast: Forecast, need: Need) -> dict[str, Any]:
    judged = {"fits": forecast.fits(need), "largest_batch": forecast.largest_batch(need)}
    return {**dataclasses.asdict(need), "peak": need.peak, **judged}
