"""What of a model a run is about: the layers that may be drawn, the modules trained in full."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import Tensor, nn

from torch_xgb.settings import Settings
from torch_xgb.targets.blocks import find_blocks
from torch_xgb.targets.heads import find_heads, left_out, named_modules, warn_of_frozen
from torch_xgb.targets.layers import Layer, Target, is_linear, is_transposed
from torch_xgb.targets.names import Matches, Names, excluding, matcher
from torch_xgb.targets.parameters import matches_any, select_parameters, warn_of_stacks
from torch_xgb.targets.quantised import base_tensors, check_beside, is_quantised_linear
from torch_xgb.targets.unmatched import explain_unmatched, nothing_found
from torch_xgb.weights.own import require_writable
from torch_xgb.weights.weight import Weight

__all__ = ["Selection", "check_rank", "select", "select_layers"]

_NEVER_CALLED = nn.MultiheadAttention  # reads out_proj.weight and never calls out_proj


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
        holders = _holders(self.model)
        for weight in weights:
            held = holders[id(weight.parameter)]
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
    return Selection(model, layers, heads)


def _is_named(name: str, module: nn.Module, targets: Names) -> bool:
    """Tell a head that is to be adapted instead: each of its linear maps is in the list."""
    if isinstance(targets, str):
        return False
    matches = matcher(targets, "target_modules")
    maps = [n for n, m in module.named_modules(prefix=name) if is_linear(m)]
    return bool(maps) and all(matches(n) for n in maps)


def _rests(module: nn.Module, trained: Container[nn.Module]) -> bool:
    """Tell a module with a linear map that no training reaches."""
    return any(m not in trained for m in module.modules() if is_linear(m))


def check_rank(r: int, layers: Sequence[Layer]) -> None:
    """Refuse a rank larger than some weight's smaller side.

    Raises:
        ValueError: If it is, with the weights' number and the first one's name.
    """
    targets = [target for layer in layers for target in layer.targets]
    narrow = [(t.name, t.shape) for t in targets if r > min(t.shape[-2:])]
    if narrow:
        name, shape = narrow[0]
        raise ValueError(
            f"r={r} is larger than the smaller side of {len(narrow)} weights, first {name!r} of "
            f"shape {shape}; choose a smaller r or leave them out with exclude_modules"
        )


def select_layers(
    model: nn.Module,
    target_modules: Names,
    exclude_modules: Names | None,
    saved: Iterable[nn.Module] = (),
    target_parameters: Names | None = None,
) -> list[Layer]:
    """Return the layers that hold at least one designated weight, in the order of definition.

    Args:
        model: The model.
        target_modules: PEFT's grammar: ``"all-linear"`` (every linear map inside the repeated
            blocks; of a model without blocks, every one but the output embedding), a regular
            expression matched against whole module names, or a list of names or name suffixes. A
            match outside the blocks becomes a layer of its own.
        exclude_modules: What to leave out, as a regular expression or a list.
        saved: Modules trained in full, which are never targets.
        target_parameters: Bare Parameters, by the same grammar; None says which there might be.

    Raises:
        TypeError: If a specification is neither string nor list of strings.
        ValueError: If nothing matches (the message lists what there is), or a matched weight is
            tied to a module that is not a target, so that a merge would change more than the
            target.

    If any is quantised, merges go beside all of them: the base stays as it is.
    """
    everything = target_modules == "all-linear"
    included = (lambda name: True) if everything else matcher(target_modules, "target_modules")
    excluded = excluding(exclude_modules)
    in_full = {id(inner) for module in saved for inner in module.modules()}
    kept_out = in_full | (_uncalled(model) if everything else set())
    candidates = {n: m for n, m in model.named_modules() if is_linear(m) and id(m) not in kept_out}
    blocks = find_blocks(model, is_linear)
    owner = _owners(blocks)
    if everything and blocks:
        candidates = {n: m for n, m in candidates.items() if id(m) in owner}

    chosen = {n: m for n, m in candidates.items() if included(n) and not excluded(n)}
    if not everything:
        explain_unmatched(target_modules, model, chosen, candidates)
    targets = _targets(model, chosen, skip_tied=everything)
    if target_parameters:
        targets += _parameters(model, target_parameters, excluded, targets, kept_out)
    elif target_parameters is None and everything:
        beside = any(target.beside for target in targets)
        warn_of_stacks(model, owner.keys() - kept_out, beside)
    if not targets:
        heads = [n for n, m in model.named_modules() if is_linear(m) and id(m) in in_full]
        raise ValueError(nothing_found(target_modules, exclude_modules, candidates, heads))
    return _group(targets, owner, model)


def _parameters(
    model: nn.Module,
    names: Names,
    excluded: Matches,
    targets: Sequence[Target],
    kept_out: AbstractSet[int],
) -> list[Target]:
    """Make targets of the bare Parameters that are named."""
    included = matcher(names, "target_parameters")
    found = select_parameters(model, included, excluded, targets, kept_out)
    for entry in () if isinstance(names, str) else names:
        if not matches_any(model, matcher([entry], "target_parameters")):
            what = f"{entry!r} matches no Parameter; the other entries are used"
            warnings.warn(f"target_parameters: {what}", stacklevel=7)
    return found


def _uncalled(model: nn.Module) -> set[int]:
    return {id(m.out_proj) for m in model.modules() if isinstance(m, _NEVER_CALLED)}


def _owners(blocks: list[tuple[str, nn.Module]]) -> dict[int, str]:
    owner: dict[int, str] = {}
    for name, block in blocks:
        for module in block.modules():
            owner.setdefault(id(module), name)
    return owner


def _targets(model: nn.Module, chosen: dict[str, nn.Module], skip_tied: bool) -> list[Target]:
    """Make a target of each distinct weight; one also held elsewhere is skipped or refused."""
    holders = _holders(model)
    targets, seen = [], set()
    beside = any(map(is_quantised_linear, chosen.values()))
    for name, module in chosen.items():
        weight = module._parameters["weight"]
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        strangers = [other for other, _ in holders[id(weight)] if other not in chosen]
        if strangers and skip_tied:
            continue
        if strangers:
            raise ValueError(
                f"{name}.weight is tied to {strangers[0]!r}, which is not a target: a merge would "
                "change both. Leave it out with exclude_modules, or untie the weights"
            )
        targets.append(_target(name, holders[id(weight)], beside))
    return targets


def _holders(model: nn.Module) -> defaultdict[int, list[tuple[str, nn.Module]]]:
    """Return the modules that hold each Parameter, with their names, by its identity."""
    holders: defaultdict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)].append((name, module))
    return holders


def _target(name: str, holders: list[tuple[str, nn.Module]], beside: bool) -> Target:
    modules = tuple(module for _, module in holders)
    biases = tuple(
        Weight(f"{holder}.bias", (module,), "bias")
        for holder, module in holders
        if module._parameters.get("bias") is not None
    )
    weight = Weight(f"{name}.weight", modules, "weight", is_transposed(modules[0]))
    return Target(name, weight, biases, beside)


def _group(targets: list[Target], owner: dict[int, str], model: nn.Module) -> list[Layer]:
    grouped: defaultdict[str, list[Target]] = defaultdict(list)
    for target in targets:
        grouped[owner.get(id(target.modules[0]), target.name)].append(target)
    order = {id(module): i for i, module in enumerate(model.modules())}

    def first(layer: Layer) -> int:
        return min(order[id(target.modules[0])] for target in layer.targets)

    return sorted((Layer(name, tuple(some)) for name, some in grouped.items()), key=first)
