"""What a module computes, found out by asking it: x W^T + b under whatever name."""

from __future__ import annotations

import copy
import itertools
from enum import Enum

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from torch_xgb.weights.places import place_of

__all__ = ["Stored", "stored"]

_ROWS, _COLUMNS, _SQUARE = 5, 3, 4  # of the weight that is tried
_SCALES = (1.0, 100.0)  # of the inputs: what clips or saturates shows at one of them
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_TABLES = (nn.Embedding, nn.EmbeddingBag)


class Stored(Enum):
    """How a linear map keeps its weight."""

    OUT_IN = "(out, in)"
    IN_OUT = "(in, out)"


_found: dict[object, Stored | None] = {}


def stored(module: nn.Module) -> Stored | None:
    """Tell how a module that computes x W^T + b keeps W, or None if it computes something else.

    Asked once of all modules of one class that say the same of themselves but for their sizes: a
    shallow copy with small weights of its own, in training and in evaluation. Hooks are not called,
    and neither the module nor any random state is changed.

    Args:
        module: Any module.

    Example:
        >>> class Turned(nn.Linear):
        ...     def forward(self, x):
        ...         return x @ self.weight.T + self.bias
        >>> stored(Turned(2, 3)), stored(nn.LayerNorm(2))
        (<Stored.OUT_IN: '(out, in)'>, None)
    """
    if not _may_be_linear(module):
        return None
    key = _looks(module)
    if key is None:
        return _ask(module)
    if key not in _found:
        _found[key] = _ask(module)
    return _found[key]


def _may_be_linear(module: nn.Module) -> bool:
    parameters = module._parameters
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if isinstance(module, _TABLES) or type(module).forward is nn.Module.forward:
        return False
    more = any(p is not None for n, p in parameters.items() if n not in ("weight", "bias"))
    if more or module._modules or module._buffers or not isinstance(weight, nn.Parameter):
        return False
    lazy = any(nn.parameter.is_lazy(p) for p in (weight, bias) if p is not None)
    return not lazy and len(place_of(weight).shape) == 2 and weight.is_floating_point()


def _looks(module: nn.Module) -> object | None:
    """What a module says of itself but for sizes, if that can be compared."""
    sizes = place_of(module._parameters["weight"]).shape  # type: ignore[arg-type]
    own = {n: v for n, v in vars(module).items() if not n.startswith("_") and n != "training"}
    said = {n: v for n, v in own.items() if not (type(v) is int and v in sizes)}
    if not all(isinstance(v, _PLAIN) for v in said.values()):
        return None
    biased = module._parameters.get("bias") is not None
    return type(module), biased, tuple(sorted((n, repr(v)) for n, v in said.items()))


def _ask(module: nn.Module) -> Stored | None:
    with unset_fake_temporarily(), torch.random.fork_rng(devices=[]), torch.no_grad():
        return next((how for how in Stored if _is_kept(module, how)), None)


def _is_kept(module: nn.Module, how: Stored) -> bool:
    """Tell whether a twin with a small weight, kept in a way, is the linear map of it."""
    twin, W, bias = _twin(module, how)
    generator = torch.Generator().manual_seed(0)
    for training, scale in itertools.product((True, False), _SCALES):
        twin.training = training
        x = scale * torch.randn(2, 4, W.shape[1], generator=generator)
        wanted = nn.functional.linear(x, W, bias)
        try:
            y = type(module).forward(twin, x)
        except Exception:  # noqa: BLE001 - whatever it needs, it is no linear map of x alone
            return False
        alike = isinstance(y, Tensor) and y.shape == wanted.shape and y.dtype == wanted.dtype
        if not (alike and torch.allclose(y, wanted, rtol=1e-4, atol=1e-4 * scale)):
            return False
    return True


def _twin(module: nn.Module, how: Stored) -> tuple[nn.Module, Tensor, Tensor | None]:
    """A copy with a small weight of its own, and attributes that agree with it: it, W, bias."""
    whole = tuple(place_of(module._parameters["weight"]).shape)  # type: ignore[arg-type]
    small = (_ROWS, _COLUMNS) if how is Stored.OUT_IN else (_COLUMNS, _ROWS)
    small = (_SQUARE, _SQUARE) if whole[0] == whole[1] else small
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(small, generator=generator)
    W = weight if how is Stored.OUT_IN else weight.T
    biased = module._parameters.get("bias") is not None
    bias = torch.randn(len(W), generator=generator) if biased else None
    twin, sizes = copy.copy(module), dict(zip(whole, small, strict=True))
    for name, value in vars(module).items():
        if type(value) is int and value in sizes and not name.startswith("_"):
            twin.__dict__[name] = sizes[value]
    twin._parameters = {
        name: None if given is None else nn.Parameter(given, requires_grad=False)
        for name, given in (("weight", weight), ("bias", bias))
        if name in module._parameters
    }
    return twin, W, bias
