"""The designated weights, and the layers that hold them: what may be drawn."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from torch import nn

from torch_xgb.targets.blocks import find_blocks
from torch_xgb.targets.layers import Layer, Target, is_linear, is_transposed
from torch_xgb.targets.names import Matches, Names, excluding, matcher
from torch_xgb.targets.parameters import matches_any, select_parameters, warn_of_stacks
from torch_xgb.targets.quantised import is_quantised_linear
from torch_xgb.targets.unmatched import explain_unmatched, nothing_found
from torch_xgb.weights.weight import Weight

__all__ = ["check_rank", "holders", "select_layers"]

_NEVER_CALLED = nn.MultiheadAttention  # reads out_proj.weight and never calls out_proj


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
    held = holders(model)
    targets, seen = [], set()
    beside = any(map(is_quantised_linear, chosen.values()))
    for name, module in chosen.items():
        weight = module._parameters["weight"]
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        strangers = [other for other, _ in held[id(weight)] if other not in chosen]
        if strangers and skip_tied:
            continue
        if strangers:
            raise ValueError(
                f"{name}.weight is tied to {strangers[0]!r}, which is not a target: a merge would "
                "change both. Leave it out with exclude_modules, or untie the weights"
            )
        targets.append(_target(name, held[id(weight)], beside))
    return targets


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


def holders(model: nn.Module) -> defaultdict[int, list[tuple[str, nn.Module]]]:
    """Return the modules that hold each Parameter, with their names, by its identity."""
    holders: defaultdict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)].append((name, module))
    return holders
