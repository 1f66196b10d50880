"""What a ledger writes down of a booster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_xgb.boosters.forms import Update
from torch_xgb.boosters.report import MergeReport
from torch_xgb.formulas.lowrank import joined
from torch_xgb.ledger.facts import Facts, entry, list_of, mapping, mapping_of, natural, number, text
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.weights.weight import Weight

__all__ = [
    "BoosterRecord",
    "check_update",
    "read_saved",
    "read_terms",
    "snapshot",
    "taken_out",
]

_TAKEN = "taken-"  # before the keys of what was taken out


@dataclass(frozen=True)
class BoosterRecord:
    """One booster: what it drew, what it put into weights and what it took out, on the CPU.

    What it has changed of the model is what it put in less α_t times what it took out: with
    ``carry``, a target's last pair is taken out of its weight when a booster begins, and trained
    on. Of that change α_t is kept, so that the merge adds what it put in, and 1 − α_t of what it
    took out.

    Attributes:
        booster_index: t.
        layers: Names of the layers it drew.
        steps: Optimizer steps it was trained for.
        rank: r.
        update_norm: ‖ΔW‖_F of the change per target.
        updates: Per weight or bias what was put in: left (out, r), right (r, in) and the scale of
            their product, α_t in it; of a stack, left (E, out, r) and right (E, r, in).
        saved: Every Parameter trained in full, as of after this booster.
        taken: Per weight or bias what was taken out when the booster began, if anything was.
        shrinkage: α_t.
    """

    booster_index: int
    layers: tuple[str, ...]
    steps: int
    rank: int
    update_norm: Mapping[str, float]
    updates: Mapping[str, Update]
    saved: Mapping[str, Tensor]
    taken: Mapping[str, Update] = field(default_factory=dict)
    shrinkage: float = 1.0

    @classmethod
    def of(
        cls,
        report: MergeReport,
        updates: Iterable[tuple[Weight, Update]],
        saved: Mapping[str, Tensor],
        taken: Mapping[str, Update] | None = None,
        shrinkage: float = 1.0,
    ) -> BoosterRecord:
        """Copy what a merge is made of.

        Args:
            report: The booster's facts.
            updates: What is put into which weight.
            saved: The Parameters trained in full.
            taken: What was taken out of weights, by name.
            shrinkage: α_t.
        """
        return cls(
            booster_index=report.booster_index,
            layers=report.layers,
            steps=report.steps,
            rank=report.rank,
            update_norm=dict(report.update_norm),
            updates={weight.name: _copied(update) for weight, update in updates},
            saved={name: snapshot(parameter) for name, parameter in saved.items()},
            taken={name: _copied(update) for name, update in (taken or {}).items()},
            shrinkage=float(shrinkage),
        )

    def merged(self, name: str) -> Update:
        """Return what the merge added to a weight, as one product."""
        update = self.updates[name]
        if name not in self.taken or self.shrinkage == 1:
            return update
        return joined(update, self.taken[name], 1 - self.shrinkage)

    @property
    def facts(self) -> Facts:
        """All but the tensors, in JSON's types."""
        names = ("booster_index", "layers", "steps", "rank", "update_norm", "shrinkage")
        scales = {name: scale for name, (_, _, scale) in self.updates.items()}
        taken = {
            n: {"scale": scale, "rank": R.shape[-2]} for n, (_, R, scale) in self.taken.items()
        }
        return {**{n: getattr(self, n) for n in names}, "scales": scales, "taken": taken}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by keys that tell them apart."""
        found = {f"saved/{name}": tensor for name, tensor in self.saved.items()}
        for name, (left, right, _) in self.updates.items():
            found[f"left/{name}"], found[f"right/{name}"] = left, right
        for name, (left, right, _) in self.taken.items():
            found[f"{_TAKEN}left/{name}"], found[f"{_TAKEN}right/{name}"] = left, right
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
        check_update(facts, header)
        taken, shrinkage = taken_out(facts, header)
        record = cls(
            booster_index=entry(facts, "booster_index", natural),
            layers=tuple(entry(facts, "layers", list_of(text))),
            steps=entry(facts, "steps", natural),
            rank=entry(facts, "rank", natural),
            update_norm=entry(facts, "update_norm", mapping_of(number)),
            updates={name: _read_update(name, scales[name], tensors, header) for name in scales},
            saved={name: read_saved(name, tensors, header) for name in header.saved},
            taken={
                name: _read_update(name, one["scale"], tensors, header, _TAKEN)
                for name, one in taken.items()
            },
            shrinkage=shrinkage,
        )
        if strangers := tensors.keys() - record.tensors.keys():
            raise ValueError(f"it holds a tensor {sorted(strangers)[0]!r}, which is nobody's")
        return record


def snapshot(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU that shares nothing and has the memory layout of its shape."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def check_update(facts: Facts, header: ChainHeader) -> None:
    """Look the facts about a booster's updates through.

    Raises:
        ValueError: If they are not what such facts must be.
    """
    entry(facts, "rank", natural)
    entry(facts, "scales", mapping_of(number))
    entry(facts, "update_norm", mapping_of(number))
    for name, one in taken_out(facts, header)[0].items():
        if name not in facts["scales"]:
            raise ValueError(f"it took something out of {name!r}, and put nothing in")
        entry(one, "scale", number)
        entry(one, "rank", natural)


def taken_out(facts: Mapping[str, Any], header: ChainHeader) -> tuple[dict[str, Facts], float]:
    """Return rank and scale of what a booster took out of weights, and α_t.

    Raises:
        ValueError: If they are not what such facts must be.
    """
    if header.version < 4:  # before, boosters took nothing out
        return {}, 1.0
    return entry(facts, "taken", mapping_of(mapping)), entry(facts, "shrinkage", number)


def read_terms(
    name: str, facts: Facts, read: Callable[[list[str]], Mapping[str, Tensor]], header: ChainHeader
) -> list[Update]:
    """Return the products whose sum is a booster's change of a weight.

    Args:
        name: The weight's.
        facts: The booster's, looked through.
        read: Reads some of its tensors.
        header: The chain's.
    """
    everything, shrinkage = taken_out(facts, header)
    taken = everything.get(name)
    prefixes = ["", _TAKEN] if taken is not None else [""]
    tensors = read([f"{prefix}{side}/{name}" for prefix in prefixes for side in ("left", "right")])
    terms = [_read_update(name, facts["scales"][name], tensors, header)]
    if taken is not None:
        left, right, scale = _read_update(name, taken["scale"], tensors, header, _TAKEN)
        terms.append((left, right, -shrinkage * scale))
    return terms


def _copied(update: Update) -> Update:
    left, right, scale = update
    return snapshot(left), snapshot(right), float(scale)


def _read_update(
    name: str,
    scale: float,
    tensors: Mapping[str, Tensor],
    header: ChainHeader,
    prefix: str = "",
) -> Update:
    """Return an update of a weight, its shapes compared with the weight's."""
    if name not in header.weights:
        raise ValueError(f"it updates {name!r}, which is no weight of the ledger")
    left, right = (entry(tensors, f"{prefix}{side}/{name}", _tensor) for side in ("left", "right"))
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
