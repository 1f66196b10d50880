"""What processes that train one model tell each other.

A group of None is a process alone: nothing is sent, and what it has is all there is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["all_reduce", "anywhere", "everyone", "gather", "is_first", "mean", "total"]


def everyone() -> ProcessGroup | None:
    """Return all processes, or None where there is only this one."""
    return distributed.group.WORLD if _are_several() else None


def is_first() -> bool:
    """Tell the process that writes for all."""
    return not _are_several() or distributed.get_rank() == 0


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def all_reduce(value: Tensor, group: ProcessGroup, how: str = "SUM") -> None:
    """Reduce a tensor over the processes of a group, in place.

    A backend sends from its own devices alone, as NCCL does: what others keep, as the host keeps
    weights that are offloaded, goes by way of one of those.

    Args:
        value: Any tensor.
        group: The processes.
        how: "SUM" or "MAX".
    """
    served = _served(group)
    sent = value if value.device.type in served else value.to(served[0])
    distributed.all_reduce(sent, getattr(distributed.ReduceOp, how), group)
    if sent is not value:
        value.copy_(sent)


def _served(group: ProcessGroup) -> list[str]:
    """Return the types of devices that a group sends from, the host's first."""
    types = {device.type for device in group._device_types} or {"cpu"}
    return sorted(types, key=lambda one: (one != "cpu", one))


def total(values: Sequence[tuple[Tensor, ProcessGroup | None]]) -> list[Tensor]:
    """Sum tensors over the processes of their groups: one all-reduce a group, device and dtype.

    Every process must keep them alike: what one has on the host, all have there.
    """
    result = [value for value, _ in values]
    alike: defaultdict[tuple[ProcessGroup, torch.device, torch.dtype], list[int]]
    alike = defaultdict(list)
    for i, (value, group) in enumerate(values):
        if group is not None:
            alike[group, value.device, value.dtype].append(i)
    for (group, _, _), mine in alike.items():
        flat = torch.cat([result[i].reshape(-1) for i in mine])
        all_reduce(flat, group)
        parts = flat.split([result[i].numel() for i in mine])
        for i, part in zip(mine, parts, strict=True):
            result[i] = part.view_as(result[i])
    return result


def mean(value: float | Tensor, group: ProcessGroup | None) -> float:
    """Return a number averaged over processes, so that all decide alike.

    Costs one synchronisation with the device, and one all-reduce of a scalar.
    """
    if group is None:
        return float(value.detach()) if isinstance(value, Tensor) else float(value)
    own = torch.as_tensor(value, dtype=torch.float32).detach().clone().reshape(())
    all_reduce(own, group)
    return float(own) / distributed.get_world_size(group)


def anywhere(here: bool, group: ProcessGroup | None, device: torch.device) -> bool:
    """Return whether something holds in any process."""
    if group is None:
        return here
    flag = torch.tensor(float(here), device=device)
    all_reduce(flag, group, "MAX")
    return bool(flag)


def gather(values: Any, group: ProcessGroup | None) -> list[Any]:  # noqa: ANN401
    """Return what each process of a group holds, in the order of ranks."""
    if group is None:
        return [values]
    held: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(held, values, group=group)
    return held
