"""What a run was told: every argument once, and who else must have been told the same.

The checkpoint, the agreement among processes, the ledger's header and the plan read it; none keeps
a list of its own. The range of a value is checked by the part that uses it, the rules between
settings here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["Contract", "Settings", "contract_of", "plain"]


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


_OF_BASE = ("optimizer_class", "optimizer_kwargs")


def _run(default: Any) -> Any:  # noqa: ANN401
    return dataclasses.field(default=default, metadata={"contract": Contract.RUN})


def _ranks(default: Any) -> Any:  # noqa: ANN401
    return dataclasses.field(default=default, metadata={"contract": Contract.RANKS})


def _here(default: Any) -> Any:  # noqa: ANN401
    return dataclasses.field(default=default, metadata={"contract": Contract.HERE})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of a ``BoostedLowRankOptimizer``, which says what each of them means.

    They are as they were told: each is checked where it is used.

    What target_modules, exclude_modules and modules_to_save select is compared, and not how it is
    said: see ``Selection.facts``.

    Raises:
        ValueError: If settings that are valid alone contradict each other.
    """

    optimizer_class: Any = _run(None)
    optimizer_kwargs: Mapping[str, Any] | None = _ranks(None)
    r: Any = _run(1)
    kappa: Any = _run(8)
    layers_per_booster: Any = _run(8)
    target_modules: str | Sequence[str] = _here("all-linear")
    exclude_modules: str | Sequence[str] | None = _here(None)
    modules_to_save: Sequence[str] | None = _here(None)
    lora_alpha: float | None = _run(None)
    lora_dropout: float = _run(0.0)
    adapter: str = _run("lora")
    bias: str = _run("none")
    shrinkage: Any = _run(1.0)
    factor_l2: float = _run(0.0)
    layer_sampler: Any = _run("uniform")
    init: str = _run("kaiming")
    carry: float | None = _run(None)
    merge_precision: str = _run("auto")
    residual_device: torch.device | str | None = _here(None)
    checkpointing: bool | float = _ranks(False)
    rewarmup_steps: int = _run(0)
    rank_lr_exponent: float = _run(0.0)
    nonfinite: str = _ranks("error")
    unused: str = _ranks("error")
    record: bool | str | os.PathLike[str] | None = _here(None)
    seed: int = _run(0)

    def __post_init__(self) -> None:
        if self.carry is None:
            return
        if self.init != "kaiming" or self.record:
            raise ValueError(
                "carry= goes with init='kaiming' and without record=: a booster that takes up an "
                "earlier one is no learner of its own, whatever begins or keeps it"
            )
        alphas = self.shrinkage if isinstance(self.shrinkage, Sequence) else [self.shrinkage]
        if any(alpha != 1 for alpha in alphas):
            raise ValueError(
                "carry= goes with shrinkage=1: a pair that is taken up is merged again, and would "
                f"be shrunk again each time, got shrinkage={self.shrinkage!r}"
            )

    @property
    def least_steps(self) -> int:
        """How many steps a booster must have: init="gradient" spends the first on A."""
        return 2 if self.init == "gradient" else 1

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Settings:
        """Take what is a setting from a function's arguments by name.

        What is the base's is held to be compared alone, and a class or callable may not pickle.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in told.items() if name in names}
        return cls(**given | {name: plain(given[name]) for name in _OF_BASE})

    def plain(self, *contracts: Contract) -> dict[str, Any]:
        """Return the settings of some contracts by name, in plain types.

        The base's arguments stand among them, each by its own name.
        """
        told = {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if contract_of(field) in contracts
        }
        of_base = told.pop("optimizer_kwargs", None) or {}
        return {**told, **of_base, **told}


def plain(value: object) -> Any:  # noqa: ANN401
    """Return a setting as a checkpoint and JSON hold it, so that what is equal is equal there.

    Lists and tuples are alike, and so are numbers of whatever library. Of a function, its kind is
    known; of another object, its class and the plain values among its public attributes.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (torch.dtype, torch.device, os.PathLike)):
        return str(value)
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return plain(value.tolist())  # type: ignore[attr-defined]
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(one) for one in (value if isinstance(value, Sequence) else sorted(value))]
    held = {key: one for key, one in getattr(value, "__dict__", {}).items() if key[0] != "_"}
    return {"of": type(value).__name__, **{k: plain(one) for k, one in held.items() if _fits(one)}}


def _fits(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_fits(one) for one in value)
    return value is None or isinstance(value, (bool, str, Real))
