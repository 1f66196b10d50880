"""Bare Parameters as targets: weights that no linear map holds.

A mixture keeps its experts in stacks, Parameters (E, out, in) that a module's forward reads as it
likes; ``nn.MultiheadAttention`` and modules of one's own keep matrices so. What such a forward
does with a Parameter cannot be seen, nor need it be: the pair is added to what it reads. Which of
a matrix's sides is out and which is in decides no more than which factor begins at zero.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from torch import nn
from torch.nn.modules.conv import _ConvNd

from torch_xgb.targets.layers import Target
from torch_xgb.weights.places import Whole, place_of
from torch_xgb.weights.weight import Weight

__all__ = ["matches_any", "select_parameters", "warn_of_stacks"]

Matches = Callable[[str], bool]
Held = tuple[str, nn.Module, str, nn.Parameter]  # full name, its module, its name there, itself


def select_parameters(
    model: nn.Module,
    included: Matches,
    excluded: Matches,
    targets: Sequence[Target],
    kept_out: AbstractSet[int],
) -> list[Target]:
    """Return the bare Parameters that are named, in the order of definition.

    A stack is stored (E, out, in), or (E, in, out) if its module says ``is_transposed``, as PEFT
    and transformers have it; a matrix (out, in).

    Args:
        model: The model.
        included: Tells whole names of Parameters that are wanted.
        excluded: Tells names of Parameters or of modules to leave out.
        targets: What target_modules selects.
        kept_out: Modules whose Parameters are left out, by identity.

    Raises:
        ValueError: If none matches, or one is a target already, is tied, or is neither a matrix nor
            a stack of them.
    """
    held = list(_held(model))
    wanted = [one for one in held if included(one[0])]
    if not wanted:
        raise ValueError(f"target_parameters matches no Parameter; {_known(held)}")
    holders: defaultdict[int, list[str]] = defaultdict(list)
    for name, *_, parameter in held:
        holders[id(parameter)].append(name)
    taken = {id(target.weight.parameter) for target in targets}
    found = []
    for name, module, attribute, parameter in wanted:
        if id(module) in kept_out or excluded(name) or excluded(name.rpartition(".")[0]):
            continue
        others = [other for other in holders[id(parameter)] if other != name]
        if why := _unfit(parameter, others, id(parameter) in taken):
            raise ValueError(f"target_parameters: {name!r} {why}")
        stacked = len(place_of(parameter).shape) == 3
        turned = stacked and bool(getattr(module, "is_transposed", False))
        found.append(Target(name, Weight(name, (module,), attribute, turned, bare=True), ()))
    return found


def matches_any(model: nn.Module, matches: Matches) -> bool:
    """Tell whether any Parameter of a model is meant."""
    return any(matches(name) for name, *_ in _held(model))


def warn_of_stacks(model: nn.Module, inside: AbstractSet[int], beside: bool) -> None:
    """Say that stacks of matrices inside the blocks stay frozen, which holds most of a mixture.

    Args:
        model: The model.
        inside: The modules inside the blocks, by identity, but those trained in full.
        beside: Whether merges go beside quantised weights, where no stack can be a target.
    """
    found = [one for one in _held(model) if id(one[1]) in inside and _is_stack(one[1], one[3])]
    if not found:
        return
    endings = {".".join(name.split(".")[-2:]) for name, *_ in found}
    way_out = (
        "They cannot be trained beside quantised weights; they can in a model of plain weights, "
        f"with target_parameters={sorted(endings)}. Say target_parameters=[] to leave them silently"
        if beside
        else f"Train them with target_parameters={sorted(endings)}, or say target_parameters=[] to "
        "leave them"
    )
    warnings.warn(
        f"{len(found)} Parameters inside the blocks that are stacks of matrices stay frozen, first "
        f"{found[0][0]!r} of shape {tuple(found[0][3].shape)}: in a mixture of experts that is "
        f"most of the model. {way_out}",
        stacklevel=6,
    )


def _held(model: nn.Module) -> Iterator[Held]:
    """Return every Parameter in each of its places."""
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{prefix}.{attribute}" if prefix else attribute, module, attribute, parameter


def _is_stack(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Tell a stack of matrices: no convolution, no token, and no more of them than they are wide.

    Maps of several heads are stored (in, heads, features) in some old models.
    """
    shape = place_of(parameter).shape
    own = not isinstance(module, _ConvNd) and not type(module).__module__.startswith("torch.")
    return own and len(shape) == 3 and 1 < shape[0] <= min(shape[1:])


def _unfit(parameter: nn.Parameter, others: Sequence[str], taken: bool) -> str | None:
    """Tell why a Parameter cannot get a pair, if it cannot."""
    shape = place_of(parameter).shape
    if taken:
        return "is a target through target_modules already: name it in one of the two"
    if others:
        return (
            f"is tied to {others[0]!r}: a merge would change both. Untie them, or leave it out "
            "with exclude_modules"
        )
    if len(shape) not in (2, 3):
        return f"has the shape {shape}: a pair goes with a matrix, or with a stack of matrices"
    if len(shape) == 3 and type(place_of(parameter)) is Whole and not parameter.is_contiguous():
        return (
            "is a stack whose members do not follow one another in memory: make it "
            "nn.Parameter(parameter.detach().contiguous()), or leave it out with exclude_modules"
        )
    return None


def _known(held: Sequence[Held]) -> str:
    fit = [name for name, _, _, parameter in held if len(place_of(parameter).shape) == 3]
    fit += [name for name, _, _, parameter in held if len(place_of(parameter).shape) == 2]
    endings = dict.fromkeys(".".join(name.split(".")[-2:]) for name in fit)
    shown = ", ".join(list(endings)[:20]) + (", …" if len(endings) > 20 else "")
    return (
        f"the model's stacks and matrices end in: {shown}. A list holds names or their endings, a "
        "string is a regular expression for the whole name"
    )
