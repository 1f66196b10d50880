"""Everything of a model that attaching must give back: modules, hooks, parameters, values."""

from typing import Any

import torch
from torch import Tensor, nn


def anatomy(model: nn.Module) -> list[tuple[Any, ...]]:
    """What a model is made of, comparable with ``==``; values are left to ``same_values``."""
    return [
        (name, type(m), m.training, *_attributes(m))
        for name, m in model.named_modules(remove_duplicate=False)
    ]


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    held = vars(module)
    hooks = {
        key: [id(h) for h in value.values()]
        for key, value in held.items()
        if "hook" in key and value
    }
    parameters = {
        n: (id(p), p.requires_grad, p.dtype) for n, p in module.named_parameters(recurse=False)
    }
    buffers = [name for name, _ in module.named_buffers(recurse=False)]
    return sorted(held), hooks, parameters, buffers, list(module._modules)


def values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer under its name, factors included."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def flat(model: nn.Module) -> Tensor:
    """Copies of all that the model saves, as one vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in model.state_dict().values()])


def same_values(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether every tensor of the model is bitwise what it was."""
    now = values(model)
    return now.keys() == before.keys() and all(same(now[name], before[name]) for name in before)


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested containers of tensors and plain values, in types too."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def differing(now: dict[str, Tensor], before: dict[str, Tensor]) -> set[str]:
    """The names of the tensors that are not bitwise what they were."""
    assert now.keys() == before.keys()
    return {name for name in now if not torch.equal(now[name], before[name])}
