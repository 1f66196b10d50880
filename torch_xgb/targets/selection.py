"""What of a model a run is about: the layers that may be drawn, the modules trained in full."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from torch_xgb.settings import Settings
from torch_xgb.targets.blocks import find_blocks
from torch_xgb.targets.designated import holders, select_layers
from torch_xgb.targets.heads import (
    find_heads,
    left_out,
    named_modules,
    unnamed,
    warn_of_frozen,
    warn_of_unnamed,
)
from torch_xgb.targets.layers import Layer, Target, is_linear
from torch_xgb.targets.names import Names, excluding, matcher
from torch_xgb.targets.quantised import base_tensors, check_beside
from torch_xgb.targets.structure import is_map
from torch_xgb.weights.own import require_writable
from torch_xgb.weights.weight import Weight

__all__ = ["Selection", "select"]


@dataclass(frozen=True, eq=False)
class Selection:
    """What of a model a run is about.

    Attributes:
        model: The model.
        layers: What may be drawn, in the order of definition.
        heads: The modules trained in full, by name.
    """

    model: nn.Module
    layers: list[Layer]
    heads: dict[str, nn.Module]

    @property
    def targets(self) -> list[Target]:
        """The targets of all layers."""
        return [target for layer in self.layers for target in layer.targets]

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """The Parameters of the heads, by name.

        Looked up anew: ``load_state_dict(assign=True)`` and sharding replace them.
        """
        return {n: p for name, head in self.heads.items() for n, p in head.named_parameters(name)}

    @property
    def trained(self) -> list[nn.Parameter]:
        """The same, each once."""
        return list(dict.fromkeys(self.named.values()))

    @property
    def bases(self) -> dict[str, Tensor]:
        """What the weights that merges go beside are made of, by name."""
        beside = [target for target in self.targets if target.beside]
        named = [(t.name, name, one) for t in beside for name, one in base_tensors(t.modules[0])]
        return {f"{target}.{name}": one for target, name, one in named}

    @property
    def facts(self) -> dict[str, object]:
        """What two runs must share of it, in plain types."""
        return {
            "modules_to_save": sorted(self.heads),
            "targets": {target.name: list(target.shape) for target in self.targets},
        }

    def check_untied(self, weights: Sequence[Weight]) -> None:
        """Refuse a weight that something besides its target holds: a merge would change both.

        One that cannot be added to is refused with them.

        Raises:
            ValueError: With its name and the other's.
        """
        holding = holders(self.model)
        for weight in weights:
            held = holding[id(weight.parameter)]
            others = [name for name, module in held if all(m is not module for m in weight.modules)]
            if others:
                raise ValueError(
                    f"{weight.name} is tied to {others[0]!r}: a merge would change both. Leave it "
                    "out with exclude_modules, untie them, or train no biases"
                )
        require_writable(weights, self.model)


def select(model: nn.Module, settings: Settings) -> Selection:
    """Find what of a model a run is about: see ``find_heads`` and ``select_layers``.

    Raises:
        TypeError: If a specification is of the wrong type.
        ValueError: If nothing matches, or a match cannot be a target.
    """
    told, named = settings.modules_to_save, settings.target_modules
    blocks = {block for _, block in find_blocks(model, is_linear)}
    found = {n: m for n, m in find_heads(model, blocks).items() if not _is_named(n, m, named)}
    heads = found if told is None else named_modules(model, told)
    layers = select_layers(
        model, named, settings.exclude_modules, heads.values(), settings.target_parameters
    )
    if any(target.beside for layer in layers for target in layer.targets):
        check_beside(settings, heads)
    if told is None or heads:
        promised = told is None and named == "all-linear" and blocks
        others = left_out(model, blocks) if promised else {}
        trained = {m for head in heads.values() for m in head.modules()}
        trained |= {m for layer in layers for target in layer.targets for m in target.modules}
        excluded = excluding(settings.exclude_modules)
        rest = {**found, **others}
        frozen = (n for n, m in rest.items() if not excluded(n) and _rests(m, trained))
        warn_of_frozen(frozen, heads)
        known = {id(target.weight.parameter) for layer in layers for target in layer.targets}
        known |= {id(p) for m in (*heads.values(), *rest.values()) for p in m.parameters()}
        alone = unnamed(model, blocks, named == "all-linear")
        warn_of_unnamed([n for n, p in alone.items() if not excluded(n) and id(p) not in known])
    return Selection(model, layers, heads)


def _is_named(name: str, module: nn.Module, targets: Names) -> bool:
    """Tell a head that is to be adapted instead: each of its linear maps is in the list."""
    if isinstance(targets, str):
        return False
    matches = matcher(targets, "target_modules")
    maps = [n for n, m in module.named_modules(prefix=name) if is_linear(m)]
    return bool(maps) and all(matches(n) for n in maps)


def _rests(module: nn.Module, trained: Container[nn.Module]) -> bool:
    """Tell a module with a map that no training reaches."""
    return any(m not in trained for m in module.modules() if is_map(m))
