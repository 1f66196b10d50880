"""Processes that are to train one model agree on what they train, or are told at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_xgb.processes import gather
from torch_xgb.weights.dtensors import local
from torch_xgb.weights.fingerprints import NUMBERING
from torch_xgb.weights.places import place_of
from torch_xgb.weights.transfers import told

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["agree", "agree_on_step", "some_rows"]

_ROWS = 16  # of each weight that are compared
_TOLERANCE = 1e-3  # of a gradient's norm: machines of other makes may round otherwise


def agree(
    settings: Mapping[str, str],
    weights: Iterable[tuple[str, Tensor]],
    group: ProcessGroup,
) -> None:
    """Compare a configuration and weights with those of the other processes.

    One digest an entry is exchanged, once. Of every weight kept whole some rows are compared;
    shards belong to one process each, and only their shape is.

    Args:
        settings: Values by name, as text that equal ones share.
        weights: Parameters by name.
        group: The processes that train the model.

    Raises:
        ValueError: On every process, if one of them differs from the first.
    """
    mine = {name: _digest(v) for name, v in settings.items()}
    mine |= {f"the weight {name}": _of_weight(parameter) for name, parameter in weights}
    everyone = gather(mine, group)
    differing = {
        rank: names for rank, theirs in enumerate(everyone) if (names := _unequal(theirs, everyone))
    }
    if differing:
        shown = "; ".join(f"rank {r}: {_listed(names)}" for r, names in differing.items())
        raise ValueError(
            f"processes that train one model must begin alike, but not all equal rank 0: {shown}. "
            "Give every process the same arguments and weights (load the same checkpoint, or seed "
            "alike before a module is initialised); to train a model of its own in each process, "
            "build the optimizer before torch.distributed.init_process_group"
        )


@torch.no_grad()
def agree_on_step(
    step: int,
    gradients: Mapping[str, Tensor | None],
    values: Mapping[str, Tensor | str],
    group: ProcessGroup,
) -> None:
    """Compare what a step is about to be taken with to that of the other processes.

    Two numbers a tensor are exchanged, and compared up to rounding; the device is waited for once.

    Args:
        step: How many were taken here, with this one.
        gradients: Each by name; None if there is none.
        values: What else must be alike, by name.
        group: The processes that train the model.

    Raises:
        RuntimeError: On every process, if one of them differs from the first.
    """
    both = gather(_summaries(gradients, values), group)
    everyone, held = [one for one, _ in both], [one for _, one in both]
    when = "the first step" if step == 1 else f"step {step}"
    if shown := _differing(held):
        raise RuntimeError(
            f"processes that train one model must go on alike, but at {when} not all equal rank 0: "
            f"{shown}. Each of them takes every step, merge, load and change of a rate, or none "
            "does: load the same checkpoint in all"
        )
    if shown := _differing(everyone):
        raise RuntimeError(
            f"processes that train one model must step with the same gradients, but at {when} not "
            f"all have those of rank 0: {shown}. Nobody averages them: call the "
            "DistributedDataParallel wrapper and not the model in it, take steps outside no_sync() "
            f"only, or average gradients yourself before step(){_waited_for(everyone)}; to train a "
            "model of its own in each process, build the optimizer before "
            "torch.distributed.init_process_group"
        )


def _differing(everyone: Sequence[Mapping[str, Any]]) -> str:
    first = everyone[0]
    differing = {
        rank: [n for n in {**first, **theirs} if not _close(first.get(n), theirs.get(n))]
        for rank, theirs in enumerate(everyone)
    }
    return "; ".join(f"rank {r}: {_listed(names)}" for r, names in differing.items() if names)


def _waited_for(everyone: Sequence[Mapping[str, object]]) -> str:
    """Tell of what is trained and got no gradient, which a wrapper waits for."""
    names = [n for n in everyone[0] if all(theirs.get(n) is None for theirs in everyone)]
    if not names:
        return ""
    return (
        f". Or it waits for {_listed(names)}, which got no gradient anywhere: build it with "
        "find_unused_parameters=True, or leave what the loss does not use out of modules_to_save"
    )


def _summaries(*several: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return mappings with two numbers in the place of each tensor."""
    tensors = [v for values in several for v in values.values() if isinstance(v, Tensor)]
    numbers = iter(told([_summary(tensor) for tensor in tensors]))
    return [
        {n: tuple(next(numbers)) if isinstance(v, Tensor) else v for n, v in values.items()}
        for values in several
    ]


def _summary(gradient: Tensor) -> Tensor:
    """Return ‖g‖ and a sum in which every entry has another weight, of about that size."""
    g = gradient.coalesce().values() if gradient.is_sparse else gradient
    g = (torch.view_as_real(g) if g.is_complex() else g).reshape(-1).double()
    weights = torch.linspace(-1, 1, g.numel(), dtype=g.dtype, device=g.device)
    return torch.stack([g.norm(), (g * weights).sum() / max(1, g.numel()) ** 0.5])


def _close(one: Any, other: Any) -> bool:  # noqa: ANN401
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return bool(one == other)
    if not all(map(math.isfinite, (*one, *other))):
        return all(map(math.isfinite, one)) == all(map(math.isfinite, other))
    return all(abs(a - b) <= _TOLERANCE * one[0] for a, b in zip(one, other, strict=True))


def _unequal(theirs: Mapping[str, str], everyone: Sequence[Mapping[str, str]]) -> list[str]:
    first = everyone[0]
    return [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_weight(parameter: Tensor) -> str:
    place = place_of(parameter)
    facts = f"{place.shape} {parameter.dtype}"
    if place.group is None and parameter.numel():
        facts += f" {NUMBERING.of(some_rows(parameter))}"
    return _digest(facts)


def some_rows(parameter: Tensor) -> Tensor:
    """Return those of a whole weight that are compared."""
    kept = local(parameter.detach())
    kept = torch.view_as_real(kept) if kept.is_complex() else kept
    kept = kept.reshape(len(parameter) if parameter.ndim else 1, -1)
    return kept[:: -(-len(kept) // _ROWS)]


def _digest(facts: str) -> str:
    return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()
