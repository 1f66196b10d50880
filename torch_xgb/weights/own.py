"""Whether what is written into a weight is what its modules compute with, and nothing else does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from torch_xgb.weights.places import is_plain
from torch_xgb.weights.weight import Weight

__all__ = ["require_own", "require_writable"]

Named = tuple[str, Tensor]


def require_own(weights: Sequence[Weight], model: nn.Module | None = None) -> None:
    """Refuse weights that are not their modules' own any more: what is written would be lost.

    Args:
        weights: Those about to be written to.
        model: Where the modules must be found, and nothing else may share the weights' memory;
            not looked at if None, which takes a microsecond a weight.

    Raises:
        RuntimeError: With the first one's name, and the way out. Nothing is changed.
    """
    found = [(w.name, why) for w in weights if (why := _estranged(w)) is not None]
    if model is not None and not found:
        found = [*_left(weights, model), *_shared(weights, model)]
    if found:
        name, why = found[0]
        raise RuntimeError(
            f"{len(found)} weights are not what their modules compute with any more, first "
            f"{name!r}: {why}. What is trained for it would be lost; nothing was changed. Take "
            "that back, and go on or finalize(); finalize(discard=True) drops what is pending "
            "instead. For a weight that is to stay so, build a new optimizer then that leaves it "
            "out with exclude_modules"
        )


def require_writable(weights: Sequence[Weight], model: nn.Module) -> None:
    """Refuse weights that a product cannot be added to, or cannot without changing another.

    Raises:
        ValueError: With the first one's name.
    """
    for weight in weights:
        parameter = weight.parameter
        if not parameter.is_floating_point():
            raise ValueError(
                f"{weight.name} is of {parameter.dtype}, and boosters are real numbers: leave it "
                "out with exclude_modules"
            )
        if any(
            n > 1 and not step for n, step in zip(parameter.shape, _strides(parameter), strict=True)
        ):
            raise ValueError(
                f"{weight.name} is expanded: several of its entries are one number in memory. "
                "Make it a tensor of its own, nn.Parameter(weight.detach().clone()), or leave it "
                "out with exclude_modules"
            )
    for name, why in _shared(weights, model):
        raise ValueError(
            f"{name} {why}: a merge would change both. Give it memory of its own, "
            "nn.Parameter(weight.detach().clone()), tie the Parameters themselves "
            "(a.weight = b.weight), or leave it out with exclude_modules"
        )


def _estranged(weight: Weight) -> str | None:
    """Tell why a weight is not what is kept under its name in its modules, if it is not."""
    for module in weight.modules:
        parameter = module._parameters.get(weight.attribute)
        if parameter is None and not _reinstated(module, weight.attribute):
            return (
                "it is computed from other tensors (pruning, weight_norm, spectral_norm, or "
                "another parametrisation)"
            )
        if parameter is None or (type(parameter) is nn.Parameter and parameter.is_floating_point()):
            continue
        if not is_plain(parameter) or not parameter.is_floating_point():
            return f"it has become a {type(parameter).__name__} of {parameter.dtype}"
    return None


def _reinstated(module: nn.Module, name: str) -> bool:
    """Make a Parameter of what taking a parametrisation off a frozen weight leaves: a buffer.

    ``remove_parametrizations`` registers none for several originals that require no gradient, as
    ``weight_norm``'s, and the weight would be missing from every ``state_dict``.
    """
    value = module._buffers.get(name)
    computed = any(n.startswith(f"{name}_") for n in (*module._parameters, *module._buffers))
    if not isinstance(value, Tensor) or computed:
        return False
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
    return True


def _left(weights: Iterable[Weight], model: nn.Module) -> Iterator[tuple[str, str]]:
    present = {id(module) for module in model.modules()}
    for weight in weights:
        if any(id(module) not in present for module in weight.modules):
            yield weight.name, "its module has been taken out of the model, or replaced"


def _shared(weights: Sequence[Weight], model: nn.Module) -> list[tuple[str, str]]:
    """Return weights that share memory with another Parameter, and with which."""
    own = {id(module._parameters[w.attribute]): w.name for w in weights for module in w.modules}
    found = [(w.name, "is another weight too") for w in weights if own[id(w.parameter)] != w.name]
    found += _tied(weights, own, model)
    spans: defaultdict[torch.device, list[tuple[int, int, str, Tensor]]] = defaultdict(list)
    for name, p in model.named_parameters():
        if type(p) is nn.Parameter and p.numel() and p.layout is torch.strided and not p.is_meta:
            start = p.data_ptr()
            spans[p.device].append((start, start + _extent(p), own.get(id(p), name), p))
    for some in spans.values():
        reaching: list[tuple[int, int, str, Tensor]] = []
        for span in sorted(some, key=lambda span: span[0]):
            reaching = [other for other in reaching if other[1] > span[0]]
            for other in reaching:
                if (id(span[3]) in own or id(other[3]) in own) and _overlap(other[3], span[3]):
                    first, second = (span, other) if id(span[3]) in own else (other, span)
                    found.append((first[2], f"shares its memory with {second[2]!r}"))
            reaching.append(span)
    return found


def _tied(
    weights: Sequence[Weight], own: Mapping[int, str], model: nn.Module
) -> Iterator[tuple[str, str]]:
    """Return weights that a module holds which is none of theirs, and under which name."""
    theirs = {id(module) for weight in weights for module in weight.modules}
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if id(parameter) in own and id(module) not in theirs:
                path = f"{name}.{attribute}" if name else attribute
                yield own[id(parameter)], f"is tied to {path!r} too"


def _strides(parameter: Tensor) -> tuple[int, ...]:
    strided = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    return parameter.stride() if strided else (1,) * parameter.ndim


def _extent(p: Tensor) -> int:
    last = sum((n - 1) * step for n, step in zip(p.shape, p.stride(), strict=True))
    return (last + 1) * p.element_size()


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Tell whether two Parameters whose memory interleaves have an entry in common."""
    size = first.element_size()
    begin, apart = first.data_ptr(), second.data_ptr() - first.data_ptr()
    if second.element_size() != size or apart % size:
        return True
    end = max(begin + _extent(first), second.data_ptr() + _extent(second))
    taken = torch.zeros((end - begin) // size, dtype=torch.bool, device="cpu")
    taken.as_strided(first.shape, first.stride()).fill_(True)
    return bool(taken.as_strided(second.shape, second.stride(), apart // size).any())
