"""What a merge did, told to those who asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.forms import Update
from torch_xgb.formulas.lowrank import frobenius_norms
from torch_xgb.weights.weight import Weight

__all__ = ["Listeners", "MergeReport", "Updates", "finite_norms", "norms"]

_LARGEST = 1e37  # a weight of 32 bits could not hold an entry as large as ten of these

Updates = Mapping[str, list[tuple[Weight, Update]]]  # of each target, its weight's first


@dataclass(frozen=True)
class MergeReport:
    """One merged booster, as functions given to ``optimizer.on_merge`` are told of it.

    Attributes:
        booster_index: t.
        layers: Names of the layers it drew.
        steps: Optimizer steps it was trained for.
        rank: r.
        update_norm: ‖ΔW‖_F = ‖α_t·s·B A‖_F per target; of a pair that was taken up, of its change.
        lost: Share of ΔW lost to rounding per target (what a residual carries over is not lost);
            only targets of less than 32 bits, or under a rounding policy, are measured.
        dropped: Per quantised target whose accumulator was full: the share, in the Frobenius norm,
            of all that was merged beside it so far that recompressing it has dropped now.
    """

    booster_index: int
    layers: tuple[str, ...]
    steps: int
    rank: int
    update_norm: Mapping[str, float]
    lost: Mapping[str, float]
    dropped: Mapping[str, float] = field(default_factory=dict)


class Listeners:
    """The functions called after each merge."""

    def __init__(self) -> None:
        self._functions: OrderedDict[int, Callable[[MergeReport], object]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Stay behind when the optimizer is pickled or copied, as torch's own hooks do."""
        return {"_functions": OrderedDict()}

    def add(self, fn: Callable[[MergeReport], object]) -> RemovableHandle:
        """Add a function; the handle's ``remove()`` takes it out again."""
        if not callable(fn):
            raise TypeError(f"on_merge takes a function of a MergeReport, got {fn!r}")
        handle = RemovableHandle(self._functions)
        self._functions[handle.id] = fn
        return handle

    @property
    def any(self) -> bool:
        """Whether anybody is told."""
        return bool(self._functions)

    def tell(self, report: Callable[[], MergeReport | None]) -> None:
        """Call them in the order they were added; a report that nobody reads is not made."""
        if self._functions and (told := report()) is not None:
            for fn in list(self._functions.values()):
                fn(told)


def norms(updates: Updates) -> Tensor:
    """Return ‖ΔW‖ of every update, in order."""
    return frobenius_norms([update for pairs in updates.values() for _, update in pairs])


def finite_norms(updates: Updates, found: Sequence[float], t: int) -> dict[str, float]:
    """Return ‖ΔW‖ of every target.

    Args:
        updates: Of the booster.
        found: What ``norms`` has found of them.
        t: The booster's index.

    Raises:
        RuntimeError: If an update is not finite.
    """
    if not all(norm < _LARGEST for norm in found):  # a NaN is not
        raise RuntimeError(
            f"booster {t} is not finite and was not merged; the weights are unharmed. Lower "
            "the learning rate or clip the gradients; finalize(discard=True) drops the booster"
        )
    each = iter(found)
    return {name: [next(each) for _ in pairs][0] for name, pairs in updates.items()}
