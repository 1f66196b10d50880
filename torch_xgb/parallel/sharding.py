"""What a model asks for whose weights are shared out over processes; nothing where none are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.booster import Booster
from torch_xgb.parallel.averaging import Averager
from torch_xgb.targets.selection import Selection
from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.places import place_of
from torch_xgb.weights.sharded import is_sharded, settle, training_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Sharding"]


def _always() -> bool:
    return True


class Sharding:
    """Finds out whether the model is sharded or compiled, before its calls until the first step.

    ``fully_shard`` and a compiler may come before the optimizer or after it, and after a first
    look at how well the model does untrained: only the first step ends that.

    Args:
        model: The model.
        booster: Its factors.
        selection: Its modules trained in full.
        recorded: Whether a ledger is kept.
        partial: Whether a process may lack gradients that others have.

    Attributes:
        averager: Averages the factors' gradients, if nobody else does.
    """

    def __init__(
        self,
        model: nn.Module,
        booster: Booster,
        selection: Selection,
        recorded: bool,
        partial: bool,
    ) -> None:
        self.model = model
        self.booster = booster
        self.selection = selection
        self.recorded = recorded
        self.partial = partial
        self.averager: Averager | None = None
        self._unstepped = True
        self._looking: list[RemovableHandle] = []
        self._at_detach = ExitStack()

    @property
    def group(self) -> ProcessGroup | None:
        """The processes that train the model; None if there is only this one."""
        return training_group(self.model)

    def attach(self) -> None:
        """Begin to look."""
        self._looking = [self.model.register_forward_pre_hook(self._before_call)]

    def detach(self) -> None:
        """Take everything back."""
        self._stop_looking()
        self._at_detach.close()
        if self.averager is not None:
            self.averager.remove()

    def at_detach(self, call: Callable[[], object]) -> None:
        """Have something called when the optimizer leaves the model."""
        self._at_detach.callback(call)

    def settle(self, base: Optimizer) -> None:
        """Make every Parameter the one that is kept, and the optimizer's own.

        A base that has not stepped yet is given the Parameters that sharding the model replaced.
        """
        found_whole = self.averager is None and not self._unstepped
        if found_whole or not is_sharded(self.model):
            return
        settle(self.model)
        self._adopt()
        if self._unstepped:
            base.param_groups[0]["params"] = list(self.booster.factors)
            if trained := self.selection.trained:
                base.param_groups[1]["params"] = trained

    def share_out(self, base: Optimizer) -> None:
        """Cut whole tensors in the base's state, just loaded, like their Parameters."""
        for parameter, state in base.state.items():
            if not is_dtensor(parameter):
                continue
            place = place_of(parameter)
            for key, value in state.items():
                if isinstance(value, Tensor) and not is_dtensor(value) and value.ndim:
                    state[key] = place.store(place.part(value).contiguous())

    def before_step(self, base: Optimizer) -> None:
        """Make sure that the step about to be taken is one, and of the factors.

        Raises:
            RuntimeError: If no backward pass went before, which would end boosters early; or if the
                base's group 0 no longer holds the factors.
        """
        if self.averager is not None and not self.averager.had_backward():
            raise RuntimeError(
                "step() without a backward pass since the last one: "
                "torch.distributed.checkpoint.state_dict does that to fill an optimizer's "
                "state. Save optimizer.state_dict() itself; see docs/distributed.md"
            )
        if self._unstepped:
            self.settle(base)
            self._stop_looking()
        self._unstepped = False
        held = base.param_groups[0]["params"]
        if len(held) != len(self.booster.factors) or any(
            a is not b for a, b in zip(held, self.booster.factors, strict=True)
        ):
            raise RuntimeError(
                "param_groups[0] no longer holds the factors: something has put other Parameters "
                "in their place. With DeepSpeed, import torch_xgb.integrations.deepspeed before "
                "deepspeed.initialize"
            )

    def _stop_looking(self) -> None:
        for handle in self._looking:
            handle.remove()
        self._looking = []

    def _before_call(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_compiling():
            return
        self.booster.look_for_compilers()
        if is_sharded(self.model):
            self._adopt()

    def _adopt(self) -> None:
        """Do once what a sharded model asks for.

        Raises:
            RuntimeError: If a ledger is kept.
        """
        if self.averager is not None:
            return
        if self.recorded:
            raise RuntimeError(
                "the model was sharded after the optimizer was built with record=, and a ledger "
                "keeps whole weights: pass record=None"
            )
        self.booster.reclaim()
        self.average(self.group)
        if self.selection.heads:
            # Their gradients are DTensors, the factors' are not, and clipping takes both at once.
            from torch.distributed.tensor.experimental import implicit_replication

            self._at_detach.enter_context(implicit_replication())

    def average(self, group: ProcessGroup | None, due: Callable[[], bool] = _always) -> None:
        """Average the factors' gradients from now on.

        Args:
            group: Over which processes.
            due: Tells, at the end of a backward pass, whether to average now.
        """
        self.averager = Averager(self.booster.factors, self._lent, group, due, self.partial)

    def average_now(self) -> None:
        """Average the factors' gradients.

        Raises:
            RuntimeError: If nobody has said over which processes.
        """
        if self.averager is None:
            raise RuntimeError("average_when(due, group) says over which processes to average")
        self.averager.average()

    def _lent(self) -> list[nn.Parameter]:
        return self.booster.lent
