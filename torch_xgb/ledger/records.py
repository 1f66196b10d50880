"""What a ledger writes down of a booster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_xgb.boosters.forms import Update
from torch_xgb.boosters.report import MergeReport
from torch_xgb.ledger.facts import Facts, entry, list_of, mapping_of, natural, number, text
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.weights.weight import Weight

__all__ = ["BoosterRecord", "read_saved", "read_update", "snapshot"]


@dataclass(frozen=True)
class BoosterRecord:
    """One booster: what it drew and what its merge adds, on the CPU.

    Attributes:
        booster_index: t.
        layers: Names of the layers it drew.
        steps: Optimizer steps it was trained for.
        rank: r.
        update_norm: ‖ΔW‖_F per target.
        updates: Per weight or bias: left (out, r), right (r, in) and the scale of their product; of
            a stack, left (E, out, r) and right (E, r, in).
        saved: Every Parameter trained in full, as of after this booster.
    """

    booster_index: int
    layers: tuple[str, ...]
    steps: int
    rank: int
    update_norm: Mapping[str, float]
    updates: Mapping[str, Update]
    saved: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        report: MergeReport,
        updates: Iterable[tuple[Weight, Update]],
        saved: Mapping[str, Tensor],
    ) -> BoosterRecord:
        """Copy what a merge is made of.

        Args:
            report: The booster's facts.
            updates: What is added to which weight.
            saved: The Parameters trained in full.
        """
        return cls(
            booster_index=report.booster_index,
            layers=report.layers,
            steps=report.steps,
            rank=report.rank,
            update_norm=dict(report.update_norm),
            updates={
                weight.name: (snapshot(left), snapshot(right), float(scale))
                for weight, (left, right, scale) in updates
            },
            saved={name: snapshot(parameter) for name, parameter in saved.items()},
        )

    @property
    def facts(self) -> Facts:
        """All but the tensors, in JSON's types."""
        names = ("booster_index", "layers", "steps", "rank", "update_norm")
        scales = {name: scale for name, (_, _, scale) in self.updates.items()}
        return {**{name: getattr(self, name) for name in names}, "scales": scales}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by keys that tell them apart."""
        found = {f"saved/{name}": tensor for name, tensor in self.saved.items()}
        for name, (left, right, _) in self.updates.items():
            found[f"left/{name}"], found[f"right/{name}"] = left, right
        return found

    @classmethod
    def read(
        cls, facts: Facts, tensors: Mapping[str, Tensor], header: ChainHeader
    ) -> BoosterRecord:
        """Put a record together again.

        Raises:
            ValueError: If it is none, or not of the chain with this header.
        """
        scales = entry(facts, "scales", mapping_of(number))
        record = cls(
            booster_index=entry(facts, "booster_index", natural),
            layers=tuple(entry(facts, "layers", list_of(text))),
            steps=entry(facts, "steps", natural),
            rank=entry(facts, "rank", natural),
            update_norm=entry(facts, "update_norm", mapping_of(number)),
            updates={name: read_update(name, scales[name], tensors, header) for name in scales},
            saved={name: read_saved(name, tensors, header) for name in header.saved},
        )
        if strangers := tensors.keys() - record.tensors.keys():
            raise ValueError(f"it holds a tensor {sorted(strangers)[0]!r}, which is nobody's")
        return record


def snapshot(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU that shares nothing and has the memory layout of its shape."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def read_update(
    name: str, scale: float, tensors: Mapping[str, Tensor], header: ChainHeader
) -> Update:
    """Return an update of a weight, its shapes compared with the weight's."""
    if name not in header.weights:
        raise ValueError(f"it updates {name!r}, which is no weight of the ledger")
    left, right = (entry(tensors, f"{side}/{name}", _tensor) for side in ("left", "right"))
    *stack, rows, columns = header.weights[name].shape
    r = left.shape[-1] if left.ndim else 0
    fits = tuple(left.shape) == (*stack, rows, r) and tuple(right.shape) == (*stack, r, columns)
    if not fits or r > max(rows, 1):
        raise ValueError(
            f"the update of {name!r}, of shape {header.weights[name].shape}, has factors of shapes "
            f"{tuple(left.shape)} and {tuple(right.shape)}"
        )
    for factor in (left, right):
        if not factor.is_floating_point() or not bool(factor.isfinite().all()):
            raise ValueError(f"the update of {name!r} has factors that are not finite numbers")
    return left, right, scale


def read_saved(name: str, tensors: Mapping[str, Tensor], header: ChainHeader) -> Tensor:
    """Return a Parameter trained in full, its shape compared with the chain's."""
    found = entry(tensors, f"saved/{name}", _tensor)
    if tuple(found.shape) != header.saved[name]:
        raise ValueError(f"{name!r} has the shape {tuple(found.shape)} for {header.saved[name]}")
    return found


def _tensor(value: object) -> Tensor:
    """Take a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError("it is no tensor")
    return value
