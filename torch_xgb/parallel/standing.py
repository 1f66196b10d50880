"""Whether processes that train one model still do: looked at ever more seldom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer

from torch_xgb.boosters.booster import Booster
from torch_xgb.parallel.agreement import agree_on_step, some_rows
from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.places import Whole, place_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Standing"]

_SELDOM = 64  # steps from one look to the next, at most


class Standing:
    """Compares what processes step with, and where they stand.

    At the first step with any, the second, the fourth, and so on, and at last at every 64th: calls
    are counted, which do not depend on where a process stands.

    Args:
        booster: The factors.
    """

    def __init__(self, booster: Booster) -> None:
        self._booster = booster
        self._calls = 0

    def before_step(
        self,
        others: Sequence[tuple[str, nn.Parameter]],
        place: Mapping[str, str],
        base: Optimizer,
        group: ProcessGroup | None,
    ) -> None:
        """Count a step, and look if it is time to.

        Args:
            others: The Parameters trained in full.
            place: Where this process is in the run, by name.
            base: Its groups have the rates.
            group: The processes that train the model; None if there is only this one.

        Raises:
            RuntimeError: If gradients, places, rates, factors or weights differ.
        """
        self._calls += 1
        step = self._calls
        every = min(_SELDOM, 1 << (step.bit_length() - 1))
        if group is None or group.size() == 1 or step % every:
            return
        kept = [(n, p) for n, p in others if not is_dtensor(p) and place_of(p).group is None]
        gradients = {name: p.grad for name, p in (*self._factors, *kept)}
        values: dict[str, Tensor | str] = {}
        if step > 1:
            values = {**place, **_rates(base), **self._values()}
        agree_on_step(step, gradients, values, group)

    @property
    def _factors(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"factor {i} of {n}", f) for i, (n, f) in enumerate(self._booster.named)]

    def _values(self) -> dict[str, Tensor]:
        weights = [w for adapter in self._booster.active for w in adapter.weights]
        whole = [w for w in weights if type(w.place) is Whole and w.parameter.numel()]
        rows = {f"the weight {w.name}": some_rows(w.parameter) for w in whole}
        return {**rows, **{name: factor.detach() for name, factor in self._factors}}


def _rates(base: Optimizer) -> dict[str, str]:
    rates = [group.get("lr") for group in base.param_groups]
    return {f"the rate of group {i}": f"{float(lr):.6g}" for i, lr in enumerate(rates) if lr}
