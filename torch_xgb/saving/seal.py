"""What a state is known by again: a number of every tensor in it, and a digest of all the rest.

A bit that flipped on a disk, an entry of another step and a value edited by hand are found by it
before anything is loaded. Learning rates, which people do edit in a saved state, may differ, and
that is said. Tensors shared out over processes are left out: each process knows a part, and a
framework may save the whole.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.fingerprints import EARLIER, NUMBERING

__all__ = ["check_seal", "seal"]

_RATES = ("lr", "initial_lr")
_UNSEALED = ("settings", "seal")  # the settings are compared one by one
_PLAIN_EARLIER = (bool, int, float, str, list)
_PLAIN = (*_PLAIN_EARLIER, bytes, complex, torch.dtype, torch.device)  # sealed by their values
_KEYS_EARLIER = ("param_groups", "state")  # of a base, what versions before 3 sealed

Leaf = tuple[str, Any]


def seal(state: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the base's state and the boosting's entry are known by again.

    Args:
        state: The base's ``state_dict()``.
        entry: What stands beside it, with or without its seal.
    """
    keys = sorted(key for key in state if isinstance(key, str))
    return {**_seal(_leaves(state, entry, keys)), "keys": keys, "rates": _rates(state)}


def _seal(leaves: Iterable[Leaf], earlier: bool = False) -> dict[str, Any]:
    leaves = list(leaves)
    tensors = {path: one for path, one in leaves if _is_sealed(one)}
    numbering, plain = (EARLIER, _PLAIN_EARLIER) if earlier else (NUMBERING, _PLAIN)
    return {"tensors": numbering.of_tensors(tensors), "values": _digest(leaves, plain)}


def check_seal(state: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Compare a state with its seal, if it has one: versions before this did not.

    Raises:
        ValueError: If something in it is not what was saved.
    """
    if "seal" not in entry:
        return
    saved = entry["seal"]
    if not isinstance(saved, Mapping) or not isinstance(saved.get("tensors"), Mapping):
        raise ValueError(_broken("its entry 'seal' is none"))
    earlier = entry["version"] < 3
    keys = _KEYS_EARLIER if earlier else saved.get("keys")
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
        raise ValueError(_broken("its seal names no keys"))
    if lost := [key for key in keys if key not in state]:
        raise ValueError(_broken(f"it lacks {lost[0]!r}"))
    here = _seal(_leaves(state, entry, keys), earlier)
    if here["tensors"] and not saved["tensors"]:
        raise ValueError(_broken("its seal names no tensor"))
    differing = [
        path for path, number in saved["tensors"].items() if here["tensors"].get(path) != number
    ]
    if differing:
        raise ValueError(_broken(f"{len(differing)} tensors differ, first {differing[0]!r}"))
    if saved.get("values") != here["values"]:
        raise ValueError(_broken("of numbers, names and shapes in it something differs"))
    if not earlier:
        _compare_rates(saved.get("rates"), _rates(state))


def _compare_rates(saved: object, here: Mapping[str, float]) -> None:
    if not isinstance(saved, Mapping) or bool(saved) != bool(here) or saved.keys() - here.keys():
        raise ValueError(_broken("its seal has no rates, or others"))
    for name in (name for name in here if saved.get(name, here[name]) != here[name]):
        warnings.warn(
            f"{name} is {here[name]!r} in the state, and was {saved[name]!r} when it was "
            "saved: it is taken as changed on purpose. To change a rate without being told, set "
            "optimizer.param_groups after loading",
            stacklevel=5,
        )


def _broken(what: str) -> str:
    return (
        f"the state is not what was saved: {what}. It was damaged, or somebody wrote to its "
        "tensors: take another checkpoint. Of a state that was changed on purpose, remove "
        "state['booster']['seal']. If torch.distributed.checkpoint wrote or read it, give that "
        'the optimizer itself, {"optimizer": optimizer}: of its state it leaves out a part'
    )


def _leaves(
    state: Mapping[str, Any], entry: Mapping[str, Any], keys: Iterable[str]
) -> Iterator[Leaf]:
    for key in keys:
        yield from _walk(key, state.get(key), _RATES if key == "param_groups" else ())
    yield from _walk("booster", {k: value for k, value in entry.items() if k not in _UNSEALED})


def _rates(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the learning rates of a state's groups, by where they are."""
    groups = state.get("param_groups")
    groups = groups if isinstance(groups, (list, tuple)) else []
    held = [(i, group) for i, group in enumerate(groups) if isinstance(group, Mapping)]
    return {
        f"param_groups[{i}][{name!r}]": float(group[name])
        for i, group in held
        for name in _RATES
        if _is_number(group.get(name))
    }


def _is_number(rate: object) -> bool:
    return isinstance(rate, (int, float)) or (isinstance(rate, Tensor) and rate.numel() == 1)


def _walk(path: str, value: Any, without: tuple[str, ...] = ()) -> Iterator[Leaf]:  # noqa: ANN401
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield path, value
        return
    kept = {str(key): one for key, one in value.items() if key not in without}
    yield path, sorted(kept)
    for key, one in kept.items():
        yield from _walk(f"{path}.{key}", one, without)


def _digest(leaves: list[Leaf], plain: tuple[type, ...]) -> str:
    spelled = sorted(f"{path}={_spelled(value, plain)}" for path, value in leaves)
    return hashlib.blake2b("\n".join(spelled).encode(), digest_size=16).hexdigest()


def _spelled(value: object, plain: tuple[type, ...]) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return repr(value) if value is None or isinstance(value, plain) else type(value).__name__


def _is_sealed(value: object) -> bool:
    return isinstance(value, Tensor) and not is_dtensor(value) and value.layout == torch.strided
