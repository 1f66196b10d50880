"""What an entry must look like: keys, types, shapes. Looked through before anything is changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.pair import Size
from torch_xgb.weights.weight import Weight

__all__ = ["check_carried", "check_factors", "check_keys", "check_taken", "check_weights"]

_PRINTS = ("frozen", "folded")


def check_keys(entry: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Refuse a mapping that lacks a key."""
    if missing := [key for key in keys if key not in entry]:
        raise ValueError(f"the state is damaged: {where} lacks {missing[0]!r}")


def check_factors(values: object, factors: Sequence[Tensor]) -> None:
    """Refuse what are not values of the factors; those of a narrower dtype are said to be."""
    given = _listed(values)
    if len(given) != len(factors):
        raise ValueError(
            f"the state is damaged: it has {len(given)} factors, the optimizer here {len(factors)}"
        )
    for i, (value, factor) in enumerate(zip(given, factors, strict=True)):
        shape, dtype = tuple(factor.shape), factor.dtype
        if not _is_floating(value, shape):
            raise ValueError(
                f"the state is damaged: factor {i} is {_kind(value)}, and needs {shape} of {dtype}"
            )
        if torch.promote_types(value.dtype, dtype) != dtype:
            raise ValueError(
                f"the state's factors are {value.dtype} and would be rounded to {dtype} here; "
                "build the optimizer on the model in the dtype that it was saved in"
            )
    if given and given[0].dtype != factors[0].dtype:
        warnings.warn(
            f"the factors were saved in {given[0].dtype} and are {factors[0].dtype} here, as the "
            "model was cast after the optimizer was built: the run goes on, but not bitwise",
            stacklevel=6,
        )


def check_carried(carried: object, shapes: Mapping[str, list[Size]] | None) -> None:
    """Refuse what are not pairs that targets remember.

    Args:
        carried: What was saved.
        shapes: Of the pair of every target, by name; None if nothing is carried here.
    """
    if not isinstance(carried, Mapping):
        if carried is not None or shapes is not None:
            raise ValueError(f"the state is damaged: 'carry' is a {type(carried).__name__}")
        return
    for name, held in carried.items():
        if name not in (shapes or {}) or not isinstance(held, Mapping):
            raise ValueError(f"the state is damaged: 'carry' holds {name!r}, which is no target")
        check_keys(held, ("factors", "state"), f"'carry' of {name!r}")
        wanted = (shapes or {})[name]
        factors, states = _listed(held["factors"]), _listed(held["state"])
        fit = len(factors) == len(states) == len(wanted)
        fit = fit and all(map(_is_floating, factors, wanted)) and _is_trained(held, wanted[0][-2])
        if not fit or not all(isinstance(state, Mapping) for state in states):
            raise ValueError(
                f"the state is damaged: 'carry' of {name!r} needs tensors of shapes {wanted} with "
                "a state each"
            )


def check_taken(taken: object, adapters: Iterable[Adapter]) -> None:
    """Refuse what is not what targets have taken out of their weights.

    Args:
        taken: What was saved; None if nothing was.
        adapters: Of those that may have; none if nothing is carried here.
    """
    known = {adapter.target.name: {w.name: w for w in adapter.weights} for adapter in adapters}
    if taken is not None and not isinstance(taken, Mapping):
        raise ValueError(f"the state is damaged: 'taken' is a {type(taken).__name__}")
    for name, products in (taken or {}).items():
        if name not in known or not isinstance(products, Mapping):
            raise ValueError(f"the state is damaged: 'taken' holds {name!r}, which is no target")
        for of, product in products.items():
            if of not in known[name] or not _is_product(product, known[name][of].shape):
                raise ValueError(f"the state is damaged: what was taken out of {of!r} does not fit")


def _is_product(value: object, shape: Size) -> bool:
    left, right, scale = parts if len(parts := _listed(value)) == 3 else (None, None, None)
    if not isinstance(left, Tensor) or not left.ndim or not _is_number(scale):
        return False
    *stack, rows, columns = shape
    r = left.shape[-1]
    return _is_floating(left, (*stack, rows, r)) and _is_floating(right, (*stack, r, columns))


def check_weights(entry: object, weights: Sequence[Weight], drawn: Iterable[Weight]) -> None:
    """Refuse what does not tell about the weights: numbers, repairs and residuals of each."""
    if not isinstance(entry, Mapping):
        raise ValueError("the state is damaged: 'weights' is no mapping")
    check_keys(entry, (*_PRINTS, "repairs", "residuals"), "'weights'")
    known = {weight.name: weight for weight in weights}
    may_be_folded = {weight.name for weight in drawn}
    for key, allowed in zip(_PRINTS, (known.keys(), may_be_folded), strict=True):
        prints = entry[key]
        if not isinstance(prints, Mapping) or not all(type(v) is int for v in prints.values()):
            raise ValueError(f"the state is damaged: 'weights.{key}' holds no fingerprints")
        if strangers := sorted(set(prints) - allowed):
            raise ValueError(f"the state is damaged: 'weights.{key}' names {strangers[0]!r}")
    check_keys(entry["frozen"], known, "'weights.frozen'")
    for key in ("repairs", "residuals"):
        if not isinstance(entry[key], Mapping):
            raise ValueError(f"the state is damaged: 'weights.{key}' is no mapping")
    if entry["repairs"].keys() != entry["folded"].keys():
        raise ValueError("the state is damaged: 'weights.repairs' and 'weights.folded' disagree")
    for name, repair in entry["repairs"].items():
        _check_repair(name, repair, known[name])
    for name, residual in entry["residuals"].items():
        shapes = () if name not in known else _shapes(known[name])
        if not any(_is_floating(residual, shape) for shape in shapes):
            raise ValueError(f"the state is damaged: the residual of {name!r} does not fit")


def _shapes(weight: Weight) -> tuple[Size, ...]:
    """Of the whole, and of what a process keeps."""
    return weight.place.shape, tuple(weight.place.local.shape)


def _check_repair(name: str, repair: object, weight: Weight) -> None:
    parts = _listed(repair)
    fits = len(parts) == 3 and all(isinstance(p, Tensor) and p.ndim == 1 for p in parts)
    fits = fits and len({len(part) for part in parts}) == 1 and parts[2].is_floating_point()
    for index, size in zip(parts[:2], weight.matrix_shape, strict=False) if fits else ():
        fits = fits and index.dtype == torch.int64
        fits = fits and not bool(((index < 0) | (index >= size)).any())
    if not fits:
        raise ValueError(f"the state is damaged: the repair of {name!r} does not fit")


def _is_floating(value: object, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape) == shape


def _is_trained(held: Mapping[str, Any], most: int) -> bool:
    """Tell the rank, the scaling and the share of a pair; earlier versions did not save them."""
    r, s, share = held.get("r", most), held.get("s"), held.get("share", 1.0)
    positive = s is None or (_is_number(s) and s > 0)
    return type(r) is int and 1 <= r <= most and positive and _is_number(share) and share >= 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and isfinite(value)  # type: ignore[arg-type]


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} of {value.dtype}"
