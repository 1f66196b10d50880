"""A device that is none: tensors that say they are elsewhere and are computed with on the CPU.

Whatever asks such a device for something is counted as a real one would be asked: what waits for
it, what is copied to it and back, and what is launched on it. So waits are found on a machine that
has no accelerator, in runs whose values are the real ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from torch_xgb.weights import transfers
from torch_xgb.weights.places import Whole, register_place

DEVICE = torch.device("lazy", 0)  # a type that every build of torch knows, and nobody computes on

_ASKS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
_ASKS |= {"_linalg_check_errors", "nonzero_static", "repeat_interleave"}


class Remote(Tensor):
    """A tensor of the device; its values are in ``here``."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[Remote], here: Tensor) -> Remote:
        """Wrap values."""
        made: Remote = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    def tolist(self) -> Any:  # noqa: ANN401
        """Return its values, copied to the host first as torch does."""
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:  # noqa: ANN401
        """Show the values."""
        return f"Remote({self.here!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Compute on the CPU, uncounted."""
        return _answer(func, args, kwargs or {}, Asked())


register_place(lambda parameter: isinstance(parameter, Remote), Whole)


@dataclass
class Asked:
    """What a device was asked for.

    Attributes:
        waits: For what the host waited, by the operation that asked.
        late: How often it looked at what was asked for before, and meanwhile has come.
        up: Copies to the device.
        down: Copies from it.
        launches: Operations on it.
    """

    waits: Counter[str] = field(default_factory=Counter)
    late: int = 0
    up: int = 0
    down: int = 0
    launches: int = 0

    @property
    def row(self) -> dict[str, int]:
        """The counts by name."""
        waits = self.waits.total()
        return {"waits": waits, "late looks": self.late, "to the device": self.up} | {
            "from it": self.down,
            "launches": self.launches,
        }


class Count(TorchDispatchMode):
    """Counts what a device is asked for inside."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = Asked()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Count an operation, and do it."""
        return _answer(func, args, kwargs or {}, self.asked)


class _Mark:
    """An event of the device, which has always come to pass."""

    counts: ClassVar[list[Asked]] = []  # those of the contexts, the innermost last

    def synchronize(self) -> None:
        self.counts[-1].late += 1


@contextmanager
def counting() -> Iterator[Asked]:
    """Count what the device is asked for inside, the library knowing that it need not wait."""
    with Count() as count, ExitStack() as patched:
        patched.enter_context(patch.object(transfers, "_APART", {*transfers._APART, DEVICE.type}))
        patched.enter_context(patch.object(transfers, "_mark", lambda _: _Mark()))
        _Mark.counts.append(count.asked)
        patched.callback(_Mark.counts.pop)
        patched.enter_context(patch.object(torch, "is_autocast_enabled", _is_autocast_enabled))
        yield count.asked


def _is_autocast_enabled(device_type: str = "cuda") -> bool:
    return device_type != DEVICE.type and _AUTOCAST(device_type)


_AUTOCAST = torch.is_autocast_enabled


def move(model: nn.Module) -> nn.Module:
    """Put a model onto the device."""
    moved: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in moved:
                    moved[parameter] = nn.Parameter(Remote(parameter.detach()))
                module._parameters[name] = moved[parameter]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Remote(buffer)
    return model


def _answer(func: Any, args: Any, kwargs: Mapping[str, Any], asked: Asked) -> Any:  # noqa: ANN401
    """Do an operation, and count what it asks for."""
    given = [leaf for leaf in tree_flatten((args, dict(kwargs)))[0] if isinstance(leaf, Tensor)]
    remote = {id(leaf.here): leaf for leaf in given if isinstance(leaf, Remote)}
    kwargs = dict(kwargs)
    there = _is_there(kwargs.get("device"))
    if not (remote or there):
        if kwargs.get("pin_memory") or _name(func) == "_pin_memory":
            return _pinned(func, args, kwargs)
        return func(*args, **kwargs)
    name = _name(func)
    if name in ("_to_copy", "copy_"):
        home = _count_copy(name, args, kwargs, asked)
    else:
        home = kwargs.get("device") is not None and not there  # as of empty_like
        if name in _ASKS or (name == "index" and _has_mask(args)):
            asked.waits[name] += 1
        elif not (home or _is_view(func)):
            asked.launches += 1
    if there:
        kwargs["device"] = torch.device("cpu")
    pinned = kwargs.pop("pin_memory", False)
    result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if home:
        if pinned:
            _pin(result)
        return result
    return tree_map(lambda leaf: _there(leaf, remote), result)


def _count_copy(name: str, args: Any, kwargs: Mapping[str, Any], asked: Asked) -> bool:  # noqa: ANN401
    """Count a copy; return whether it ends on the host."""
    if name == "copy_":
        target, source = args[0], args[1]
        patient = (args[2:] or [kwargs.get("non_blocking", False)])[0]
        ends_there = isinstance(target, Remote)
        pinned = _is_pinned(source if ends_there else target)
    else:
        source, patient = args[0], kwargs.get("non_blocking", False)
        ends_there = _is_there(kwargs.get("device", source.device))
        pinned = _is_pinned(source)
    began_there = isinstance(source, Remote)
    if began_there and ends_there:
        asked.launches += 1
    elif began_there:
        asked.down += 1
    elif source.ndim or name != "copy_":  # a number goes along with the call
        asked.up += 1
    else:
        return not ends_there
    if began_there != ends_there and not (patient and pinned):
        asked.waits[f"{name} {'to' if ends_there else 'from'} the device"] += 1
    return not ends_there


def _pinned(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:  # noqa: ANN401
    """Return a tensor of the host that says that it is pinned."""
    kwargs.pop("pin_memory", None)
    made: Tensor = args[0].clone() if _name(func) == "_pin_memory" else func(*args, **kwargs)
    _pin(made)
    return made


def _pin(tensor: Tensor) -> None:
    vars(tensor.untyped_storage())["pinned"] = True


def _is_pinned(tensor: Tensor) -> bool:
    return not isinstance(tensor, Remote) and "pinned" in vars(tensor.untyped_storage())


def _name(func: Any) -> str:  # noqa: ANN401
    return str(func._schema.name).removeprefix("aten::")


def _is_there(device: object) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type  # type: ignore[call-overload, no-any-return]


def _is_view(func: Any) -> bool:  # noqa: ANN401
    if _name(func) in ("detach", "lift_fresh", "alias", "is_pinned"):
        return True
    infos = [returned.alias_info for returned in func._schema.returns]
    return bool(infos) and all(info is not None and not info.is_write for info in infos)


def _has_mask(args: Any) -> bool:  # noqa: ANN401
    return any(i is not None and i.dtype == torch.bool for i in args[1])


def _here(leaf: Any) -> Any:  # noqa: ANN401
    return leaf.here if isinstance(leaf, Remote) else leaf


def _there(leaf: Any, known: Mapping[int, Remote]) -> Any:  # noqa: ANN401
    if not isinstance(leaf, Tensor) or isinstance(leaf, Remote):
        return leaf
    return known[id(leaf)] if id(leaf) in known else Remote(leaf)
