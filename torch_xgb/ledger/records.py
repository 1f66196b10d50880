"""What a ledger writes down: a header once, then one record per booster."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torch_xgb.boosters.forms import Form, Update
from torch_xgb.boosters.report import MergeReport
from torch_xgb.settings import Contract, Settings, differences
from torch_xgb.targets.compiled import plain_name
from torch_xgb.targets.selection import Selection
from torch_xgb.weights.weight import Weight

__all__ = ["BoosterRecord", "ChainHeader", "WeightFacts", "originals", "snapshot"]

Facts = dict[str, Any]  # what JSON holds
VERSION = 2


@dataclass(frozen=True)
class WeightFacts:
    """A weight that boosters are merged into.

    Attributes:
        shape: (out, in); of a bias (out, 1).
        dtype: E.g. "bfloat16".
        transposed: Whether it is stored (in, out).
        modules: Names of the modules that hold it: several where it is tied.
    """

    shape: tuple[int, int]
    dtype: str
    transposed: bool
    modules: tuple[str, ...]


@dataclass(frozen=True)
class ChainHeader:
    """What all boosters of a chain have in common.

    Attributes:
        settings: What the run was told, as far as a run that goes on must be told the same.
        weights: Every weight and bias that may be merged into, by name.
        targets: Every target module with its layer's name, in the model's order.
        saved: The Parameters trained in full, by name, with their shapes.
        saved_modules: Names of the modules they belong to.
        base_model: Where the model was loaded from, if known.
        model_class: "module:class" of the model.
        fingerprints: Of the original weights, once they are kept.
        run: A random name, the same for all boosters of a run.
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, WeightFacts]
    targets: Mapping[str, str]
    saved: Mapping[str, tuple[int, ...]]
    saved_modules: tuple[str, ...]
    base_model: str | None = None
    model_class: str | None = None
    fingerprints: Mapping[str, int] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def of(
        cls, model: nn.Module, settings: Settings, selection: Selection, form: Form
    ) -> ChainHeader:
        """Describe a run.

        Args:
            model: The model.
            settings: What the run was told.
            selection: What of the model it is about.
            form: What a pair is.
        """
        names = {id(module): name for name, module in model.named_modules()}
        weights = [weight for target in selection.targets for weight in form.weights(target)]
        kind, origin = type(model), getattr(model, "name_or_path", None)
        return cls(
            settings=settings.plain(Contract.RUN),
            weights={weight.name: _facts(weight, names) for weight in weights},
            targets={t.name: layer.name for layer in selection.layers for t in layer.targets},
            saved={name: tuple(parameter.shape) for name, parameter in selection.named.items()},
            saved_modules=tuple(selection.heads),
            base_model=origin if isinstance(origin, str) and origin else None,
            model_class=f"{kind.__module__}:{kind.__qualname__}",
        )

    def differences(self, other: ChainHeader) -> list[str]:
        """Return the names of the settings in which a run could not go on with another's chain."""
        told = {n: value for n, value in other.settings.items() if n in self.settings}
        told_otherwise = differences(self.settings, told)
        model = ("weights", "targets", "saved")
        return told_otherwise + [
            name for name in model if getattr(self, name) != getattr(other, name)
        ]

    @property
    def adapter(self) -> str:
        """The form of a pair: "lora" or "direft"."""
        return str(self.settings["adapter"])

    @property
    def precision(self) -> str:
        """The policy of the merges, as given to the optimizer."""
        return str(self.settings["merge_precision"])

    @property
    def seed(self) -> int:
        """Of stochastic rounding."""
        return int(self.settings["seed"])

    @property
    def plain(self) -> Facts:
        """It in JSON's types."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def read(cls, facts: Facts) -> ChainHeader:
        """Take it back from JSON.

        Raises:
            ValueError: If a later version of the library wrote it.
        """
        if facts.get("version") not in (1, VERSION):
            raise ValueError(
                f"the ledger has version {facts.get('version')!r}, this torch_xgb reads 1 to "
                f"{VERSION}"
            )
        given = {key: facts[key] for key in facts if key != "version"}
        if facts["version"] == 1:  # it held these settings alone
            told = {"adapter": "adapter", "merge_precision": "precision", "seed": "seed"}
            given["settings"] = {name: given.pop(key) for name, key in told.items()}
        given["saved"] = {name: tuple(shape) for name, shape in given["saved"].items()}
        given["saved_modules"] = tuple(given["saved_modules"])
        given["weights"] = {
            name: WeightFacts(
                (w["shape"][0], w["shape"][1]), w["dtype"], w["transposed"], tuple(w["modules"])
            )
            for name, w in given["weights"].items()
        }
        return cls(**given)


@dataclass(frozen=True)
class BoosterRecord:
    """One booster: what it drew and what its merge adds, on the CPU.

    Attributes:
        booster_index: t.
        layers: Names of the layers it drew.
        steps: Optimizer steps it was trained for.
        rank: r.
        update_norm: ‖ΔW‖_F per target.
        updates: Per weight or bias: left (out, r), right (r, in) and the scale of their product.
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
    def read(cls, facts: Facts, tensors: Mapping[str, Tensor]) -> BoosterRecord:
        """Put a record together again."""
        return cls(
            booster_index=facts["booster_index"],
            layers=tuple(facts["layers"]),
            steps=facts["steps"],
            rank=facts["rank"],
            update_norm=facts["update_norm"],
            updates={
                name: (tensors[f"left/{name}"], tensors[f"right/{name}"], scale)
                for name, scale in facts["scales"].items()
            },
            saved={
                key.removeprefix("saved/"): tensor
                for key, tensor in tensors.items()
                if key.startswith("saved/")
            },
        )


def snapshot(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU that shares nothing and has the memory layout of its shape."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def originals(model: nn.Module, header: ChainHeader) -> dict[str, Tensor]:
    """Return what a run changes of a model, as stored: the targets' weights, the saved modules."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: parameters[name].detach() for name in (*header.weights, *header.saved)}


def _facts(weight: Weight, names: Mapping[int, str]) -> WeightFacts:
    rows, columns = weight.shape
    dtype = str(weight.parameter.dtype).removeprefix("torch.")
    holders = tuple(plain_name(names[id(module)]) for module in weight.modules)
    return WeightFacts((rows, columns), dtype, weight.transposed, holders)
