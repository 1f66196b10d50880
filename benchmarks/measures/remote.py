"""A device that is none: tensors that say they are elsewhere and are computed with on the CPU.

Whatever asks such a device for something is counted as a real one would be asked: what waits for
it, what is copied to it and back, and what is launched on it. So waits are found on a machine that
has no accelerator, in runs whose values are the real ones. There may be several such devices: what
mixes their tensors, or theirs and the host's, raises as it does with real ones, and so does whoever
reads on the host what may not have come yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
OTHER = torch.device("lazy", 1)

_ASKS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
_ASKS |= {"_linalg_check_errors", "nonzero_static", "repeat_interleave"}
_COPIES = {"_to_copy", "copy_", "_foreach_copy_"}
_FROM_BOTH = {*_COPIES, "index", "index_put_"}  # indices may be the host's


class Remote(Tensor):
    """A tensor of the device; its values are in ``here``."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[Remote], here: Tensor, device: torch.device = DEVICE) -> Remote:
        """Wrap values; of no device that is named by its number, those of the first."""
        device = DEVICE if device.index is None else device
        made: Remote = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=device,
        )
        made.here = here
        return made

    def tolist(self) -> Any:  # noqa: ANN401
        """Return its values, copied to the host first as torch does."""
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:  # noqa: ANN401
        """Show the values."""
        return f"Remote({self.here!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Compute on the CPU, uncounted."""
        if any(map(has_own_way, types)):
            return NotImplemented
        return _answer(func, args, kwargs or {}, Asked())


def has_own_way(kind: type[Tensor]) -> bool:
    """Tell a class of tensors that answers operations itself, by those of tensors it is made of."""
    return kind.__torch_dispatch__ not in (Tensor.__torch_dispatch__, Remote.__torch_dispatch__)


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
        """Count an operation, and do it; those of tensors made of others come as these's."""
        if any(map(has_own_way, types)):
            return NotImplemented
        return _answer(func, args, kwargs or {}, self.asked)


class _Mark:
    """An event of the device, which has always come to pass."""

    counts: ClassVar[list[Asked]] = []  # those of the contexts, the innermost last

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def synchronize(self) -> None:
        """Wait for it."""
        self.counts[-1].late += 1
        settle(self._device)


@contextmanager
def counting() -> Iterator[Asked]:
    """Count what the device is asked for inside, the library knowing that it need not wait."""
    with Count() as count, ExitStack() as patched:
        patched.enter_context(patch.object(transfers, "_APART", {*transfers._APART, DEVICE.type}))
        patched.enter_context(patch.object(transfers, "_mark", _Mark))
        patched.enter_context(patch.object(transfers, "_wait", settle))
        _Mark.counts.append(count.asked)
        patched.callback(_Mark.counts.pop)
        patched.enter_context(patch.object(torch, "is_autocast_enabled", _is_autocast_enabled))
        yield count.asked


def _is_autocast_enabled(device_type: str = "cuda") -> bool:
    return device_type != DEVICE.type and _AUTOCAST(device_type)


_AUTOCAST = torch.is_autocast_enabled


def move(model: nn.Module, device: torch.device = DEVICE) -> nn.Module:
    """Put a model onto a device, or from one onto another."""
    known: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in known:
                    required = parameter.requires_grad
                    known[parameter] = nn.Parameter(moved(parameter, device), required)
                module._parameters[name] = known[parameter]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else moved(buffer, device)
    return model


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, which may be the host."""
    here = tensor.here if isinstance(tensor, Remote) else tensor.detach()
    return Remote(here, device) if _is_there(device) else here


def _answer(func: Any, args: Any, kwargs: Mapping[str, Any], asked: Asked) -> Any:  # noqa: ANN401
    """Do an operation, and count what it asks for."""
    given = [leaf for leaf in tree_flatten((args, dict(kwargs)))[0] if isinstance(leaf, Tensor)]
    remote = {id(leaf.here): leaf for leaf in given if isinstance(leaf, Remote)}
    kwargs, name = dict(kwargs), _name(func)
    there = _is_there(kwargs.get("device"))
    if not _is_view(func):
        _require_come(name, given)
    if not (remote or there):
        if kwargs.get("pin_memory") or name == "_pin_memory":
            return _pinned(func, args, kwargs)
        if name == "is_pinned":
            return _is_pinned(args[0])
        return func(*args, **kwargs)
    device = torch.device(kwargs["device"]) if there else _one_device(name, given)
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
        if name in ("_to_copy", "copy_") and _is_patient(name, args, kwargs):
            if name == "_to_copy" or _is_pinned(result):  # whose memory is pinned too
                _COMING.append((device, result.untyped_storage()))
        return result
    return tree_map(lambda leaf: _there(leaf, remote, device), result)


def _one_device(name: str, given: Sequence[Tensor]) -> torch.device:
    """Return the device that tensors lie on, numbers of the host aside.

    Raises:
        RuntimeError: If they lie on several, in an operation that is no copy.
    """
    devices = dict.fromkeys(t.device for t in given if isinstance(t, Remote) or t.ndim)
    if name not in _FROM_BOTH and len(devices) > 1:
        raise RuntimeError(f"{name}: expected all tensors on one device, got {[*devices]}")
    return next(t.device for t in given if isinstance(t, Remote))


def _count_copy(name: str, args: Any, kwargs: Mapping[str, Any], asked: Asked) -> bool:  # noqa: ANN401
    """Count a copy; return whether it ends on the host."""
    if name == "copy_":
        target, source = args[0], args[1]
        ends_there = isinstance(target, Remote)
        pinned = _is_pinned(source if ends_there else target)
    else:
        source = args[0]
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
    if began_there != ends_there and not (pinned and _is_patient(name, args, kwargs)):
        asked.waits[f"{name} {'to' if ends_there else 'from'} the device"] += 1
    return not ends_there


def _is_patient(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:  # noqa: ANN401
    given = args[2:] if name == "copy_" else ()
    return bool((given or [kwargs.get("non_blocking", False)])[0])


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


def _there(leaf: Any, known: Mapping[int, Remote], device: torch.device) -> Any:  # noqa: ANN401
    if not isinstance(leaf, Tensor) or isinstance(leaf, Remote):
        return leaf
    return known[id(leaf)] if id(leaf) in known else Remote(leaf, device)


_COMING: list[tuple[torch.device, torch.UntypedStorage]] = []  # of the host, being written to


def _require_come(name: str, given: Sequence[Tensor]) -> None:
    """Raise if the host is about to read what a device may not have written yet."""
    if not _COMING or name in _COPIES and any(isinstance(t, Remote) for t in given):
        return  # a copy has its turn
    coming = {storage._cdata for _, storage in _COMING}
    own = [t for t in given if type(t) in (Tensor, nn.Parameter)]
    if any(t.untyped_storage()._cdata in coming for t in own):
        raise RuntimeError(f"{name}: reads what may not have come from the device yet")


def settle(device: torch.device) -> None:
    """Wait until what comes from a device is there."""
    _COMING[:] = [one for one in _COMING if one[0] != device]
