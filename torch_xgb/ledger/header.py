"""What all boosters of a chain have in common, written down once."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from torch_xgb.boosters.forms import Form
from torch_xgb.formulas.entries import as_matrix
from torch_xgb.ledger.digests import sealed, unsealed
from torch_xgb.ledger.facts import (
    Facts,
    entry,
    flag,
    integer,
    list_of,
    mapping,
    mapping_of,
    natural,
    optional,
    text,
)
from torch_xgb.settings import Contract, Settings, differences
from torch_xgb.targets.compiled import plain_name
from torch_xgb.targets.layers import Target
from torch_xgb.targets.selection import Selection
from torch_xgb.weights.fingerprints import EARLIER, NUMBERING
from torch_xgb.weights.merge import MERGE_PRECISIONS
from torch_xgb.weights.weight import Weight

__all__ = ["ChainHeader", "WeightFacts", "originals"]

VERSION = 5
_ADAPTERS = ("lora", "direft")


@dataclass(frozen=True)
class WeightFacts:
    """A weight that boosters are merged into.

    Attributes:
        shape: (out, in); of a bias (out, 1), of a stack (E, out, in).
        dtype: E.g. "bfloat16".
        transposed: Whether it is stored (in, out).
        modules: Names of the modules that hold it: several where it is tied.
        bare: Whether it is a Parameter of no linear map.
    """

    shape: tuple[int, ...]
    dtype: str
    transposed: bool
    modules: tuple[str, ...]
    bare: bool = False

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape as stored; a bias is stored without the 1."""
        *stack, rows, columns = self.shape
        return (*stack, columns, rows) if self.transposed else self.shape


@dataclass(frozen=True)
class ChainHeader:
    """What all boosters of a chain have in common.

    Attributes:
        settings: What the run was told, as far as a run that goes on must be told the same.
        weights: Every weight and bias that may be merged into, by name.
        targets: Every target module with its layer's name, in the model's order.
        saved: The Parameters trained in full, by name, with their shapes.
        saved_modules: Names of the modules they belong to; of a list of modules, of those in it.
        alike: Names of other modules that end like one of these, whom PEFT would take for it.
        tied: Other names of Parameters trained in full, each with the one in ``saved``.
        unlike: Names of what else is in these modules, and PEFT could not load: buffers, and lists
            of Parameters.
        base_model: Where the model was loaded from, if known.
        model_class: "module:class" of the model.
        fingerprints: Of the original weights, once they are kept.
        run: A random name, the same for all boosters of a run.
        version: Of what is written; before 3, boosters had no digests and did not know their run,
            before 4, they took nothing out,
            before 5, fingerprints of float64 missed some signs.
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, WeightFacts]
    targets: Mapping[str, str]
    saved: Mapping[str, tuple[int, ...]]
    saved_modules: tuple[str, ...]
    alike: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()
    base_model: str | None = None
    model_class: str | None = None
    fingerprints: Mapping[str, int] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    version: int = VERSION

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
        held = [(t, weight) for t in selection.targets for weight in form.weights(t)]
        heads = tuple(n for name, head in selection.heads.items() for n in _called(name, head))
        kind, origin = type(model), getattr(model, "name_or_path", None)
        return cls(
            settings=settings.plain(Contract.RUN),
            weights={weight.name: _facts(target, weight, names) for target, weight in held},
            targets={t.name: layer.name for layer in selection.layers for t in layer.targets},
            saved={name: tuple(parameter.shape) for name, parameter in selection.named.items()},
            saved_modules=heads,
            alike=_alike(model, tuple(map(plain_name, heads))),
            tied=_tied(model, selection.named),
            unlike=tuple(n for name, head in selection.heads.items() for n in _unlike(name, head)),
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

    def check_original(self, name: str, stored: Tensor) -> None:
        """Make sure that a tensor is the original weight or Parameter of a name, bit by bit.

        Raises:
            ValueError: If it is not.
        """
        if (facts := self.weights.get(name)) is None:
            if tuple(stored.shape) != self.saved[name]:
                raise ValueError(f"{name!r} has the shape {tuple(stored.shape)}")
            return
        shape = facts.stored
        of_bias = shape[1] == 1 and tuple(stored.shape) == shape[:1]
        dtype = str(stored.dtype).removeprefix("torch.")
        if (tuple(stored.shape) != shape and not of_bias) or dtype != facts.dtype:
            raise ValueError(
                f"{name!r} is {dtype} of the shape {tuple(stored.shape)}, not {facts.dtype} of "
                f"{shape}"
            )
        if not self.is_original(name, as_matrix(stored, facts.transposed)):
            raise ValueError(f"{name!r} is not the weight that the run began with")

    def is_original(self, name: str, W: Tensor) -> bool:
        """Tell whether a matrix is the weight of a name that the run began with, bit by bit."""
        numbering = EARLIER if self.version < 5 else NUMBERING
        return numbering.of(W) == self.fingerprints[name]

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
        return sealed(dataclasses.asdict(self))

    @property
    def start(self) -> Facts:
        """What the boosters follow: the run, and the weights it began with."""
        return {"run": self.run, "fingerprints": dict(self.fingerprints)}

    @classmethod
    def read(cls, document: object) -> ChainHeader:
        """Take it back from JSON.

        Raises:
            ValueError: If a later version of the library wrote it, or it was changed since.
        """
        held = mapping(document)
        version = held.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(
                f"the ledger has version {version!r}, this torch_xgb reads 1 to {VERSION}"
            )
        facts = unsealed(held, required=version >= 3)
        if version == 1:  # it held these settings alone
            told = {"adapter": "adapter", "merge_precision": "precision", "seed": "seed"}
            facts["settings"] = {name: entry(facts, key, _any) for name, key in told.items()}
        header = cls(
            settings=entry(facts, "settings", _settings),
            weights=entry(facts, "weights", mapping_of(_weight)),
            targets=entry(facts, "targets", mapping_of(text)),
            saved=entry(facts, "saved", mapping_of(_shape)),
            saved_modules=tuple(entry(facts, "saved_modules", list_of(text))),
            alike=tuple(entry(facts, "alike", list_of(text)) if "alike" in facts else ()),
            tied=entry(facts, "tied", mapping_of(text)) if "tied" in facts else {},
            unlike=tuple(entry(facts, "unlike", list_of(text)) if "unlike" in facts else ()),
            base_model=entry(facts, "base_model", optional(text)),
            model_class=entry(facts, "model_class", optional(text)),
            fingerprints=entry(facts, "fingerprints", mapping_of(integer)),
            run=entry(facts, "run", text),
            version=version,
        )
        if unknown := header.weights.keys() ^ header.fingerprints.keys():
            raise ValueError(f"its weights and fingerprints differ in {sorted(unknown)[0]!r}")
        return header


def originals(model: nn.Module, header: ChainHeader) -> dict[str, Tensor]:
    """Return what a run changes of a model, as stored: the targets' weights, the saved modules."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: parameters[name].detach() for name in (*header.weights, *header.saved)}


def _called(name: str, module: nn.Module) -> list[str]:
    """Return a module's name; of a list or mapping, which PEFT cannot wrap, those of what is in it.

    Nobody calls that itself.
    """
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return [name] if any(True for _ in module.parameters()) else []
    return [n for key, one in module.named_children() for n in _called(f"{name}.{key}", one)]


def _unlike(name: str, module: nn.Module) -> list[str]:
    held = list(module.state_dict(prefix=f"{name}."))
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        return held
    named = {n for n, _ in module.named_parameters(name, remove_duplicate=False)}
    return [n for n in held if n not in named]


def _alike(model: nn.Module, saved: tuple[str, ...]) -> tuple[str, ...]:
    inside = tuple(f"{name}." for name in saved)
    named = ((plain_name(name), module) for name, module in model.named_modules())
    others = ((n, m) for n, m in named if n not in saved and not n.startswith(inside))
    return tuple(n for n, m in others if n.endswith(saved) and any(True for _ in m.parameters()))


def _tied(model: nn.Module, saved: Mapping[str, nn.Parameter]) -> dict[str, str]:
    names = {id(parameter): name for name, parameter in saved.items()}
    named = model.named_parameters(remove_duplicate=False)
    held = {n: names[id(p)] for n, p in named if id(p) in names}
    return {plain_name(n): name for n, name in held.items() if n not in saved}


def _facts(target: Target, weight: Weight, names: Mapping[int, str]) -> WeightFacts:
    shape = target.shape if weight is target.weight else weight.shape
    dtype = str(weight.parameter.dtype).removeprefix("torch.")
    holders = tuple(plain_name(names[id(module)]) for module in weight.modules)
    return WeightFacts(shape, dtype, weight.transposed, holders, weight.bare)


def _any(value: object) -> object:
    return value


def _settings(value: object) -> Facts:
    settings = mapping(value)
    if (adapter := entry(settings, "adapter", text)) not in _ADAPTERS:
        raise ValueError(f"'adapter' must be one of {list(_ADAPTERS)}, not {adapter!r}")
    if (precision := entry(settings, "merge_precision", text)) not in MERGE_PRECISIONS:
        raise ValueError(f"'merge_precision' is {precision!r}, which is none")
    entry(settings, "seed", integer)
    return settings


def _shape(value: object) -> tuple[int, ...]:
    return tuple(list_of(natural)(value))


def _weight(value: object) -> WeightFacts:
    facts = mapping(value)
    shape = entry(facts, "shape", _shape)
    bare = "bare" in facts and entry(facts, "bare", flag)
    if len(shape) != 2 and not (bare and len(shape) == 3):
        raise ValueError(f"a weight's shape has two numbers, not {list(shape)}")
    return WeightFacts(
        shape,
        entry(facts, "dtype", text),
        entry(facts, "transposed", flag),
        tuple(entry(facts, "modules", list_of(text))),
        bare,
    )
