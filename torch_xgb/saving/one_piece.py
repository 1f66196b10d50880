"""A state in one piece, as ``torch.distributed.checkpoint`` must have it.

That names every tensor in a state by its path, drops what is empty, and reads back no more than
what the state here has, of which an optimizer that has not stepped lacks most. So if it asks for
the state itself, of ``{"optimizer": optimizer}``, it gets one entry: bytes, tensors made whole.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_xgb.callers import callers
from torch_xgb.weights.dtensors import whole

__all__ = ["blank", "gathered", "in_one_piece", "is_being_read", "is_being_written", "taken_apart"]

_KEY = "in_one_piece"


def is_being_written() -> bool:
    """Tell whether it is ``torch.distributed.checkpoint`` that asks, to save."""
    return _is_calling("torch.distributed.checkpoint.state_dict_saver")


def is_being_read() -> bool:
    """Tell whether it is ``torch.distributed.checkpoint`` that asks, to load."""
    return _is_calling("torch.distributed.checkpoint.state_dict_loader")


def blank() -> dict[str, Any]:
    """Return what is to be read into."""
    return {_KEY: b""}


def in_one_piece(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state in one piece; every process must call it."""
    file = io.BytesIO()
    torch.save(gathered(state), file)
    return {_KEY: file.getvalue()}


def taken_apart(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what ``in_one_piece`` was given, or a state that is not of its making as it is.

    Raises:
        ValueError: If nothing has been read.
    """
    if not isinstance(state, Mapping) or list(state) != [_KEY]:
        return state
    if not state[_KEY]:
        raise ValueError(
            "torch.distributed.checkpoint has read nothing into the optimizer's state: the "
            'checkpoint has none under this name. Save {"model": model, "optimizer": optimizer}, '
            "the optimizer itself, and load the same"
        )
    apart: dict[str, Any] = torch.load(io.BytesIO(state[_KEY]), "cpu", weights_only=True)
    return apart


def gathered(state: Any) -> Any:  # noqa: ANN401
    """Return a state with whole tensors for DTensors; every process must call it."""
    if isinstance(state, Tensor):
        return whole(state)
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def _is_calling(module: str) -> bool:
    return any(frame.f_globals.get("__name__") == module for frame in callers())
