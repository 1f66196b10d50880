"""What a run was told: every argument once, and who else must have been told the same.

The checkpoint, the agreement among processes, the ledger's header and the plan read it; none keeps
a list of its own. The range of a value is checked by the part that uses it, the rules between
settings here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Number, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Contract", "Settings", "canonical", "contract_of", "differences", "plain"]

_MOST = 64  # entries of a tensor that is compared by value


class Contract(Enum):
    """Who must have been told the same."""

    RUN = "a run that resumes this one, and every process"
    RANKS = "every process"
    HERE = "nobody"


def contract_of(setting: dataclasses.Field[Any]) -> Contract:
    """Return a field's contract.

    Raises:
        TypeError: If it states none.
    """
    contract = setting.metadata.get("contract")
    if not isinstance(contract, Contract):
        raise TypeError(f"the setting {setting.name!r} states no contract: RUN, RANKS or HERE")
    return contract


def _run(default: Any) -> Any:  # noqa: ANN401
    return dataclasses.field(default=default, metadata={"contract": Contract.RUN})


def _ranks(default: Any) -> Any:  # noqa: ANN401
    return dataclasses.field(default=default, metadata={"contract": Contract.RANKS})


def _here(default: Any) -> Any:  # noqa: ANN401
    return dataclasses.field(default=default, metadata={"contract": Contract.HERE})


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """The arguments of a ``BoostedLowRankOptimizer``, which says what each of them means.

    Each is checked where it is used. What is compared is what was told, not what becomes of it: the
    plain form of a setting is taken once, here. Not among them are facts that follow from more than
    the arguments: the base's class, and what target_modules, exclude_modules and modules_to_save
    select.

    Raises:
        ValueError: If settings that are valid alone contradict each other.
    """

    optimizer_kwargs: Mapping[str, Any] | None = _ranks(None)
    r: Any = _run(1)
    kappa: Any = _run(8)
    layers_per_booster: Any = _run(8)
    target_modules: str | Sequence[str] = _here("all-linear")
    exclude_modules: str | Sequence[str] | None = _here(None)
    modules_to_save: str | Sequence[str] | None = _here(None)
    modules_to_save_optimizer: Any = _run(None)
    head_lr: float | None = _ranks(None)
    lora_alpha: float | None = _run(16.0)
    lora_dropout: float = _run(0.0)
    adapter: str = _run("lora")
    bias: str = _run("none")
    shrinkage: Any = _run(1.0)
    factor_l2: float = _run(0.0)
    layer_sampler: Any = _run("uniform")
    init: str = _run("kaiming")
    carry: Any = _run(None)
    target_parameters: str | Sequence[str] | None = _here(None)
    merge_precision: str = _run("auto")
    accumulator_rank: int = _run(32)
    residual_device: torch.device | str | None = _here(None)
    checkpointing: bool | float = _ranks(False)
    rewarmup_steps: int = _run(0)
    rank_lr_exponent: float = _run(0.0)
    nonfinite: str = _ranks("error")
    unused: str = _ranks("error")
    record: bool | str | os.PathLike[str] | None = _here(None)
    seed: int = _run(0)
    _told: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters"):
            listed = getattr(self, name)
            if isinstance(listed, Iterable) and not isinstance(listed, str):
                object.__setattr__(self, name, tuple(listed))
        told = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        object.__setattr__(self, "_told", told)
        object.__setattr__(self, "optimizer_kwargs", None)  # the base's, and may not pickle
        self._check_together()

    def _check_together(self) -> None:
        if self.target_parameters and (self.adapter != "lora" or self.lora_dropout):
            raise ValueError(
                "target_parameters= goes with adapter='lora' and lora_dropout=0: of a Parameter "
                "that a module reads neither the input is seen, which could be dropped, nor the "
                f"output, got adapter={self.adapter!r}, lora_dropout={self.lora_dropout!r}"
            )

    @property
    def least_steps(self) -> int:
        """How many steps a booster must have: init="gradient" spends the first on A."""
        return 2 if self.init == "gradient" else 1

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Settings:
        """Take what is a setting from a function's arguments by name."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in told.items() if name in names})

    def plain(self, *contracts: Contract) -> dict[str, Any]:
        """Return the settings of some contracts by name, in plain types.

        The base's arguments stand among them, each by its own name.
        """
        told = {
            field.name: self._told[field.name]
            for field in dataclasses.fields(self)
            if contract_of(field) in contracts
        }
        of_base = told.pop("optimizer_kwargs", None) or {}
        return {**told, **of_base, **told}


def plain(value: object, depth: int = 4) -> Any:  # noqa: ANN401
    """Return a setting as a checkpoint and JSON hold it.

    Lists and tuples are alike, and so are the numbers of other libraries. Of a function, its kind
    is known; of another object, its class and what its constructor was told, as far as that stands
    in attributes of the parameters' names; of devices, their type; of large tensors, their shape.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Number):
        return _plain_number(value)
    if isinstance(value, Enum):
        return {"of": type(value).__name__, "name": value.name}
    if isinstance(value, torch.device):
        return value.type
    if isinstance(value, (torch.dtype, os.PathLike, bytes)):
        return str(value)
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return _plain_array(value)
    return _plain_object(value, depth - 1) if depth else {"of": type(value).__name__}


def differences(theirs: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the names in which settings of another run differ from those here.

    One that the other run did not know was what it is by default.
    """
    defaults = {field.name: plain(field.default) for field in dataclasses.fields(Settings)}
    return [
        name
        for name, value in here.items()
        if _as_text(theirs.get(name, defaults.get(name))) != canonical(value)
    ]


def _as_text(value: object) -> str:
    """Return what another run saved as text, be it what no run saves."""
    try:
        return canonical(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def canonical(value: object) -> str:
    """Return a plain value as text that equal ones share."""
    return json.dumps(_even(value), sort_keys=True)


def _even(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _even(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_even(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain_number(value: Number) -> Any:  # noqa: ANN401
    if isinstance(value, Integral):
        return int(value)
    return (
        float(value) if isinstance(value, Real) else {"of": type(value).__name__, "is": str(value)}
    )


def _plain_array(value: Any) -> Any:  # noqa: ANN401
    shape = [int(size) for size in getattr(value, "shape", ())]
    kept = getattr(value, "layout", torch.strided) == torch.strided and not (
        getattr(value, "is_meta", False) or hasattr(value, "device_mesh")
    )
    if kept and math.prod(shape) <= _MOST and hasattr(value, "tolist"):
        return plain(value.tolist())
    return {"of": type(value).__name__, "shape": shape}


def _plain_object(value: object, depth: int) -> Any:  # noqa: ANN401
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Mapping):
        return {_key(key): plain(one, depth) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(one, depth) for one in sorted(value, key=repr)]
    if isinstance(value, Sequence):
        return [plain(one, depth) for one in value]
    return {"of": type(value).__name__} | {n: plain(one, depth) for n, one in _said(value).items()}


def _key(key: object) -> str:
    return key if isinstance(key, str) else f"{type(key).__name__} {key!r}"


def _said(value: object) -> dict[str, object]:
    """Return what an object's constructor was told."""
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if inspect.isroutine(value):
        return {}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        try:
            names = list(inspect.signature(type(value)).parameters)
        except (TypeError, ValueError):
            names = []
    return {name: getattr(value, name) for name in names if hasattr(value, name)}
