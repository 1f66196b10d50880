"""Tensors on their way between the host and a device that computes while the host goes on.

Whatever reads a number of such a device waits until everything asked of it so far is done, and so
does a copy that is not told otherwise. What is sent from here waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_xgb.formulas.entries import widest

__all__ = ["Word", "arrived", "beside", "fetched", "is_apart", "sent", "state_beside", "told"]


_APART = {"cuda"}  # types of devices that take copies and events in their turn


def is_apart(device: torch.device) -> bool:
    """Tell a device that the host need not wait for."""
    return device.type in _APART


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; one of the host arrives there in its turn."""
    if is_apart(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def beside(like: Tensor, device: torch.device | str | None) -> Tensor:
    """Return an unwritten tensor laid out like another, on a device that may be the host.

    From there to the other's device and back it can be copied in its turn.
    """
    home = device is not None and torch.device(device).type == "cpu"
    pinned = home and is_apart(like.device)
    return torch.empty_like(like, device=device, pin_memory=pinned)


def state_beside(
    state: Mapping[str, Any], parameter: Tensor, group: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a Parameter's state where the Parameter is.

    Counters of steps stay on the CPU, unless the base's kernels read them.
    """
    on_device, device = bool(group.get("fused") or group.get("capturable")), parameter.device

    def moved(value: Any) -> Any:  # noqa: ANN401
        return (
            value.to(device) if isinstance(value, Tensor) and (value.ndim or on_device) else value
        )

    return {key: moved(value) for key, value in state.items()}


def fetched(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, where it arrives in its turn.

    The host would read what has not come yet, so it waits.
    """
    return tensor.to(device, non_blocking=is_apart(device))


def arrived(devices: Iterable[torch.device]) -> None:
    """Wait until what is on its way from devices to the host is there."""
    for device in devices:
        if is_apart(device):
            _wait(device)


def told(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Return the numbers in small tensors, each as a flat list; waits once for each device."""
    answers: list[list[float]] = [[] for _ in tensors]
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensors[i].reshape(-1).to(widest(device)) for i in here]).tolist()
        each = iter(flat)
        for i in here:
            answers[i] = [next(each) for _ in range(tensors[i].numel())]
    return answers


class Word:
    """Numbers asked of a device now, to be read later: by then, as a rule, they are there.

    Args:
        values: Of a device that is apart; of any other they are read at once.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: Any = None
        if is_apart(values.device):
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = _mark(values.device)
        else:
            self._values = values.cpu()

    def read(self) -> list[float]:
        """Return them; waits for what was asked of the device before them, and nothing after."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        numbers: list[float] = self._values.reshape(-1).tolist()
        return numbers

    def __reduce__(self) -> tuple[type[Word], tuple[Tensor]]:
        """Be copied when they are there."""
        self.read()
        return Word, (self._values.clone(),)


_wait = torch.cuda.synchronize


def _mark(device: torch.device) -> Any:  # noqa: ANN401
    """Return what tells when a device has done what it was asked so far."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
