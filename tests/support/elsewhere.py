"""FSDP2 on a device that is none: see ``benchmarks.measures.remote``.

FSDP2 asks a device for streams and events, which are stood in for, and frees the memory of what it
has gathered, which is here. All else of it runs as it is, over gloo: what is sent from the host,
where a test says that nobody does, raises as it would with NCCL.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed
from torch.distributed import device_mesh
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measures import remote
from benchmarks.measures.remote import DEVICE, Remote, counting, has_own_way
from torch_xgb import processes

FSDP = "torch.distributed.fsdp._fully_shard._fsdp_"


class Stream:
    """Does everything at once, and is its own event."""

    def __init__(self, **_: Any) -> None: ...

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def record(self, *_: Any) -> "Stream":
        return self

    record_event = record

    def synchronize(self) -> None:
        remote.settle(DEVICE)


HANDLE = SimpleNamespace(
    Stream=Stream,
    Event=Stream,
    current_stream=Stream,
    stream=nullcontext,
    current_device=lambda: DEVICE.index,
    device_count=lambda: 1,
    is_available=lambda: True,
    is_initialized=lambda: True,
)


class Sends(TorchDispatchMode):
    """Refuses to send what is not of the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(map(has_own_way, types)):
            return NotImplemented
        waits = "barrier" in str(func) or "wait_tensor" in str(func)
        if "c10d" in func.namespace and not waits:
            sent = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            if not all(isinstance(one, Remote) for one in sent):
                raise RuntimeError(f"{func}: no backend of the group serves the host")
        return func(*args, **kwargs or {})


@contextmanager
def elsewhere(backends: Sequence[str]) -> Iterator[None]:
    """Have the device, with groups of processes that have backends for these types of devices."""
    types = {"gloo": "cpu", "nccl": DEVICE.type}
    served = [types[backend] for backend in backends]
    modules = [import_module(FSDP + name) for name in ("init", "param_group", "state")]
    modules += [import_module(FSDP + "collectives"), device_mesh]
    param, c10d = import_module(FSDP + "param"), distributed.distributed_c10d
    with ExitStack() as stack:
        stack.enter_context(counting())
        for module in modules:
            stack.enter_context(patch.object(module, "_get_device_handle", lambda _: HANDLE))
        for name in ("alloc_storage", "free_storage"):
            own = getattr(param, name)
            stack.enter_context(patch.object(param, name, lambda t, own=own: own(_here(t))))
        stack.enter_context(patch.object(torch.accelerator, "current_stream", Stream))
        # As devices that compute have: clipping then multiplies whole lists.
        stack.enter_context(patch.object(clip_grad, "_has_foreach_support", lambda *_: True))
        stack.enter_context(patch.object(processes, "_served", lambda _: served))
        if "cpu" not in served:
            of_objects = patch.object(c10d, "_get_object_coll_device", lambda *_: DEVICE.type)
            stack.enter_context(of_objects)
            stack.enter_context(Sends())
        yield


def _here(tensor: Tensor) -> Tensor:
    return tensor.here if isinstance(tensor, Remote) else tensor
