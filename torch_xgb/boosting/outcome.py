"""What a run beside quantised weights comes to: an adapter's folder, or plain weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from torch_xgb.boosters.accumulator import Accumulator
from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.booster import Booster
from torch_xgb.ledger.export import ExportReport, write_adapter
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.schedule.course import Course
from torch_xgb.settings import Settings
from torch_xgb.targets.quantised import dtype_of, is_quantised_linear
from torch_xgb.targets.selection import Selection
from torch_xgb.weights.merge import add_product
from torch_xgb.weights.weight import Weight

__all__ = ["Outcome"]

_ROWS = 256  # of the identity that a map is asked about at a time


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is given out of a run, at any time.

    Attributes:
        booster: Has the accumulators, and the pending pairs.
        selection: What of the model the run is about.
        settings: What it was told.
        course: Knows how many boosters were merged.
    """

    booster: Booster
    selection: Selection
    settings: Settings
    course: Course

    def save_adapter(self, folder: str | os.PathLike[str], rank: int | None) -> ExportReport:
        """Write what stands beside quantised weights as a LoRA adapter of PEFT's.

        Args:
            folder: Where to.
            rank: As of ``write_adapter``.

        Raises:
            RuntimeError: If the weights are not quantised, or nothing was trained.
        """
        return _write(self, Path(folder), rank)

    def dequantize(self) -> None:
        """Make every quantised linear map a plain one: see ``_dequantize``."""
        _dequantize(self.selection.model, self.booster)


@torch.no_grad()
def _write(of: Outcome, folder: Path, rank: int | None) -> ExportReport:
    booster, selection, settings = of.booster, of.selection, of.settings
    if not booster.beside:
        raise RuntimeError(
            "save_adapter() is for quantised models, beside whose weights boosters stand. Of "
            "plain weights, which hold their boosters, save the model; or train with record= and "
            "write optimizer.chain.to_peft(folder)"
        )
    sums = {a.target.weight.name: _sum(a) for a in booster.beside.values()}
    if not any(len(right) for _, right in sums.values()):
        raise RuntimeError("save_adapter() before anything was trained: there is nothing to write")
    header = ChainHeader.of(selection.model, settings, selection, booster.form)
    kept = f"The adapter is their sum, kept at rank {settings.accumulator_rank} in training" + (
        "" if rank is None else f" and cut to rank {rank}"
    )
    saved = {name: parameter.detach() for name, parameter in selection.named.items()}
    delta = sums.__getitem__
    merged = of.course.progress.booster_index
    report = write_adapter(folder, header, delta, saved, rank, merged, kept)
    booster.custody.saved = True
    return report


def _sum(adapter: Adapter) -> tuple[Tensor, Tensor]:
    """Return the factors of all that a target computes beside its weight, in float64 here."""
    assert adapter.accumulator is not None
    left, right = (side.detach().double().cpu() for side in adapter.accumulator.product)
    for _, (B, A, scale) in adapter.updates(1.0) if adapter.pending else ():
        left = torch.cat([left, B.double().cpu() * scale], 1)
        right = torch.cat([right, A.double().cpu()])
    return left, right


@torch.no_grad()
def _dequantize(model: nn.Module, booster: Booster) -> None:
    """Make every quantised linear map a plain one, with what was merged beside it in its weight.

    One at a time: each computes what it did, up to a rounding of its dtype.
    """
    plain: dict[int, nn.Linear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and is_quantised_linear(child):
                if id(child) not in plain:
                    plain[id(child)] = _plain(child)  # type: ignore[arg-type]
                    if (held := child._modules.get("accumulator")) is not None:
                        _put_in(Weight(name, (plain[id(child)],), "weight"), held)
                parent._modules[name] = plain[id(child)]
    for adapter in booster.beside.values():
        modules = adapter.target.modules
        if adapter.accumulator is not None and not is_quantised_linear(modules[0]):
            _put_in(adapter.target.weight, adapter.accumulator)
            adapter.accumulator.detach(modules)
    for module in model.modules():
        if (quantiser := getattr(module, "hf_quantizer", None)) is not None:
            quantiser.remove_quantization_config(module)


def _put_in(weight: Weight, held: nn.Module) -> None:
    assert isinstance(held, Accumulator)
    weight.place.local.copy_(add_product(weight, weight.place.local, *held.product, 1.0))


def _plain(module: nn.Linear) -> nn.Linear:
    """Return what computes what a quantised map does, which is asked about the identity."""
    columns, rows, bias = module.in_features, module.out_features, module.bias
    device, dtype = module.weight.device, dtype_of(module)
    found = nn.Linear(columns, rows, bias is not None, device=device, dtype=dtype)
    found.requires_grad_(False).train(module.training)
    module.train()  # in evaluation bitsandbytes rounds the input too, or packs the weight anew
    offset = _answer(module, torch.zeros(1, columns, device=device, dtype=dtype))
    for start in range(0, columns, _ROWS):
        some = slice(start, min(start + _ROWS, columns))
        asked = torch.zeros(some.stop - start, columns, device=device, dtype=dtype)
        asked[:, some].fill_diagonal_(1)
        found.weight[:, some] = (_answer(module, asked) - offset).T
    if bias is not None:
        found.bias.copy_(bias)
    return found


@torch.enable_grad()
def _answer(module: nn.Linear, x: Tensor) -> Tensor:
    return module.forward(x.requires_grad_()).detach()
