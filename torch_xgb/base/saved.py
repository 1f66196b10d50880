"""The base's part of a checkpoint: looked through before it is loaded, and taken back if it fails.

torch's own ``load_state_dict`` counts groups and their parameters, and takes anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["check_counters", "check_saved", "load_saved", "unchanged_on_error"]

Groups = Sequence[Mapping[str, Any]]


def check_saved(base: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Look a state of the base through, changing nothing.

    A class with a ``load_state_dict`` of its own knows best what it saves.

    Raises:
        ValueError: If it is none, or is of other groups or Parameters than the base has.
    """
    if type(base).load_state_dict is not Optimizer.load_state_dict:
        return
    groups: Any = state_dict.get("param_groups")
    state: Any = state_dict.get("state")
    listed = isinstance(groups, (list, tuple)) and all(isinstance(g, Mapping) for g in groups)
    if not listed or not isinstance(state, Mapping):
        raise ValueError(_unlike("it needs a mapping 'state' and a list 'param_groups'"))
    ours: Groups = base.param_groups
    saved = [g.get("params") for g in groups]
    given = [len(params) if isinstance(params, (list, tuple)) else None for params in saved]
    if given != [len(group["params"]) for group in ours]:
        raise ValueError(
            _unlike(
                f"its param_groups hold {given} parameters, those here "
                f"{[len(group['params']) for group in ours]}"
            )
        )
    for i, (theirs, own) in enumerate(zip(groups, ours, strict=True)):
        _check_group(f"param_groups[{i}]", theirs, own)
    numbers = [number for params in saved for number in params]
    parameters = [parameter for group in ours for parameter in group["params"]]
    if len(set(map(str, numbers))) != len(numbers):
        raise ValueError(_unlike("it names a parameter twice"))
    plain = type(base).__module__.startswith("torch.optim")
    strangers = [key for key in state if key not in numbers]
    # Others keep state of their own in it by name: MADGRAD its 'k'.
    if strangers := [key for key in strangers if plain or not isinstance(key, str)]:
        raise ValueError(_unlike(f"it has state of a parameter {strangers[0]!r} of no group"))
    for number, parameter in zip(numbers, parameters, strict=True):
        _check_state(number, state.get(number, {}), parameter, plain)


def check_counters(saved: object) -> dict[str, float | None]:
    """Return what a group was found to count by itself.

    Raises:
        ValueError: If it is no mapping of names to numbers or None.
    """
    kinds = (bool, int, float, type(None))
    if not isinstance(saved, Mapping) or not all(type(v) in kinds for v in saved.values()):
        raise ValueError(_unlike(f"its counters are {saved!r}"))
    return dict(saved)


def _check_group(name: str, theirs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for key, value in theirs.items():
        if key != "params" and key in own and not _alike(value, own[key]):
            raise ValueError(_unlike(f"{name}[{key!r}] is {value!r}, here it is {own[key]!r}"))
    lr = theirs.get("lr", 0.0)
    if isinstance(lr, (int, float)) and not (isfinite(lr) and lr >= 0):
        raise ValueError(_unlike(f"{name}['lr'] must be a finite number ≥ 0, got {lr!r}"))


def _check_state(number: object, state: object, parameter: nn.Parameter, plain: bool) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(_unlike(f"the state of parameter {number!r} is a {type(state).__name__}"))
    for key, value in state.items() if plain else ():
        # Of torch's own optimizers all state is entry by entry, or by rows and columns.
        if isinstance(value, Tensor) and value.ndim and not _broadcasts(value, parameter):
            raise ValueError(
                _unlike(
                    f"{key!r} of parameter {number!r} has shape {tuple(value.shape)}, and the "
                    f"parameter {tuple(parameter.shape)}"
                )
            )


def _broadcasts(value: Tensor, parameter: nn.Parameter) -> bool:
    return value.ndim == parameter.ndim and all(
        a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True)
    )


def _alike(theirs: object, ours: object) -> bool:
    """Tell values of one kind. What is open here may be anything, and a flag may be left open."""
    if ours is None or (theirs is None and isinstance(ours, bool)):
        return True
    if isinstance(theirs, bool) or isinstance(ours, bool):
        return isinstance(theirs, bool) and isinstance(ours, bool)
    numbers = (Real, Tensor)
    if isinstance(theirs, numbers) or isinstance(ours, numbers):
        return isinstance(theirs, numbers) and isinstance(ours, numbers)
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(theirs) == len(ours) and all(map(_alike, theirs, ours))
    return isinstance(theirs, type(ours)) or isinstance(ours, type(theirs))


def load_saved(base: Optimizer, state_dict: Mapping[str, Any], factors: Sequence[Tensor]) -> None:
    """Have the base load its part, by copy: torch's own way shares tensors with what it is given.

    Args:
        base: The base.
        state_dict: Its part.
        factors: The factors that were saved beside it, which those here may differ from in dtype.

    Raises:
        ValueError: If the base cannot load it, or comes to lack a setting.
    """
    before = [set(group) for group in base.param_groups]
    try:
        base.load_state_dict(copy.deepcopy(dict(state_dict)))
    except Exception as error:
        raise ValueError(
            _unlike(f"{type(base).__name__}.load_state_dict() says: {error}")
        ) from error
    for i, (had, group) in enumerate(zip(before, base.param_groups, strict=True)):
        if missing := sorted(key for key in had & base.defaults.keys() if key not in group):
            raise ValueError(_unlike(f"param_groups[{i}] lacks {missing[0]!r}"))
    if type(base).load_state_dict is Optimizer.load_state_dict:
        _as_saved(base, state_dict, factors)


def _as_saved(base: Optimizer, state_dict: Mapping[str, Any], factors: Sequence[Tensor]) -> None:
    """Give state back the dtype that it was saved in: torch casts it to its Parameter's.

    NAdam's, ASGD's and others' scalars are float32 beside Parameters of any dtype. State of a
    factor that is of another dtype now stays cast.
    """
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    parameters = [parameter for group in base.param_groups for parameter in group["params"]]
    cast = {
        here
        for here, saved in zip(base.param_groups[0]["params"], factors, strict=True)
        if here.dtype != saved.dtype
    }
    for number, parameter in zip(numbers, parameters, strict=True):
        given = {} if parameter in cast else state_dict["state"].get(number, {})
        for key, value in given.items():
            base.state[parameter][key] = _uncast(base.state[parameter].get(key), value)


def _uncast(loaded: Any, saved: Any) -> Any:  # noqa: ANN401
    if isinstance(loaded, Tensor) and isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
    if isinstance(loaded, dict) and isinstance(saved, Mapping):
        return {key: _uncast(one, saved.get(key)) for key, one in loaded.items()}
    plain = type(loaded) in (list, tuple) and type(saved) is type(loaded)
    if plain and len(loaded) == len(saved):
        return type(loaded)(map(_uncast, loaded, saved))
    return loaded


@contextmanager
def unchanged_on_error(base: Optimizer) -> Iterator[None]:
    """Give the base everything back that it had, if what follows raises."""
    held = dict(vars(base))
    groups = [(group, dict(group)) for group in base.param_groups]
    states = {key: dict(s) if isinstance(s, dict) else s for key, s in base.state.items()}
    try:
        yield
    except BaseException:
        vars(base).clear()
        vars(base).update(held)
        for group, entries in groups:
            group.clear()
            group.update(entries)
        base.param_groups[:] = [group for group, _ in groups]
        base.state.clear()
        base.state.update(states)
        raise


def _unlike(what: str) -> str:
    return (
        f"the state of the base does not fit the optimizer here: {what}. Nothing was changed; take "
        "the checkpoint of this run, or load the model's weights alone to start anew"
    )
