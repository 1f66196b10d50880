"""What a model asks for whose weights are shared out over processes; nothing where none are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.booster import Booster
from torch_xgb.boosters.compilers import hook_all
from torch_xgb.parallel.averaging import Averager
from torch_xgb.parallel.replicas import Replicas
from torch_xgb.parallel.standing import Standing
from torch_xgb.parallel.tensors import refuse
from torch_xgb.processes import everyone
from torch_xgb.targets.selection import Selection
from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.places import place_of
from torch_xgb.weights.sharded import is_parallel, is_sharded, settle, training_group
from torch_xgb.weights.wrappers import refuse_fsdp1

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Sharding"]

Named = Sequence[tuple[str, nn.Parameter]]


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
        parallel: Whether tensor parallelism cuts weights.
        group: The processes that train the model; None if there is only this one. It is all there
            are when the optimizer is built, or those over which gradients are averaged.
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
        self._trained = selection.trained
        self.recorded = recorded
        self.partial = partial
        self.averager: Averager | None = None
        refuse(model, booster)
        self.parallel = is_parallel(model)
        self.group = training_group(model)
        self._alone = self.group is None
        self._unstepped, self._standing = True, Standing(booster)
        self._looking: list[RemovableHandle] = []
        self._at_detach = ExitStack()
        self._replicas = Replicas(model)

    def __getstate__(self) -> dict[str, Any]:
        """Copy all processes, which are an object of this one, as the fact that it is all."""
        is_all = self.group is not None and self.group is everyone()
        return {**self.__dict__, "group": None if is_all else self.group, "is_all": is_all}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Mean all processes where the copy is."""
        is_all = state.pop("is_all")
        self.__dict__.update(state)
        self.group = everyone() if is_all else self.group

    def attach(self) -> None:
        """Begin to look."""
        self._looking = [self.model.register_forward_pre_hook(self._before_call)]
        self._replicas.attach()
        self.booster.tie_idle(self.group is not None)
        if self._is_shared_out():  # a call that is compiled as a whole would not ask
            self._adopt()

    def detach(self) -> None:
        """Take everything back."""
        self._stop_looking()
        self._at_detach.close()
        self._replicas.detach()
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
        if found_whole or not self._is_shared_out():
            return
        settle(self.model)
        self._adopt()
        if self._unstepped:
            base.param_groups[0]["params"] = list(self.booster.factors)
            shards = dict(zip(self._trained, self.selection.trained, strict=True))
            for group in base.param_groups[1:]:
                group["params"] = [shards.get(p, p) for p in group["params"]]
            self._trained = self.selection.trained

    def share_out(self, base: Optimizer) -> None:
        """Cut whole tensors in the base's state, just loaded, like their Parameters."""
        for parameter, state in base.state.items():
            if not is_dtensor(parameter):
                continue
            place = place_of(parameter)
            for key, value in state.items():
                if isinstance(value, Tensor) and not is_dtensor(value) and value.ndim:
                    state[key] = place.store(place.part(value).contiguous())

    def before_step(self, base: Optimizer) -> bool:
        """Make sure that the step about to be taken is one, and of the factors.

        Returns:
            Whether other processes turned out to train the model, which did not when the optimizer
            was built: they have agreed on nothing yet.

        Raises:
            RuntimeError: If processes may count other steps; if FSDP1 has the model; or if the
                base's group 0 no longer holds the factors.
        """
        if self._unstepped:
            refuse_fsdp1(self.model)
            self.settle(base)
            self._stop_looking()
            self._join(self._beside(self._replicas.find()))
        self._replicas.refuse_uneven()
        first, self._unstepped = self._unstepped, False
        held = base.param_groups[0]["params"]
        if len(held) != len(self.booster.factors) or any(
            a is not b for a, b in zip(held, self.booster.factors, strict=True)
        ):
            raise RuntimeError(
                "param_groups[0] no longer holds the factors: something has put other Parameters "
                "in their place. With DeepSpeed, import torch_xgb.integrations.deepspeed before "
                "deepspeed.initialize"
            )
        return first and self._alone and self.group is not None

    def look_at_gradients(
        self, others: Named, standing: Mapping[str, str], base: Optimizer
    ) -> None:
        """Look whether other processes have the same gradients, and stand where this one does.

        Args:
            others: The Parameters trained in full.
            standing: Where this one stands.
            base: Its groups have the rates.

        Raises:
            RuntimeError: If they have not, or do not; or if no backward pass went before, be it a
                closure's, which would end boosters early.
        """
        if self.averager is not None and not self.averager.had_backward():
            raise RuntimeError(
                "step() without a backward pass since the last one, which would end boosters early"
            )
        self.booster.drop_idle_gradients()
        self._standing.before_step(others, standing, base, self.group)

    def _beside(self, group: ProcessGroup | None) -> ProcessGroup | None:
        """Return the processes over which a wrapper averages.

        Raises:
            RuntimeError: If tensor parallelism cuts the weights of what it wraps.
        """
        if group is not None and self.parallel:
            raise RuntimeError(
                "DistributedDataParallel is around a model that tensor parallelism cuts: it would "
                "average the factors' gradients before the parts of each are summed. Call "
                "fully_shard over another dimension of the mesh instead, which averages too"
            )
        return group

    def _join(self, group: ProcessGroup | None) -> None:
        """Train the model together with others, who have only now turned out to."""
        if self.group is None and group is not None:
            self.group = group
            self.booster.tie_idle(True)

    def _stop_looking(self) -> None:
        for handle in self._looking:
            handle.remove()
        self._looking = []

    def _before_call(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_compiling():
            hook_all()
            return
        refuse_fsdp1(self.model, without=False)
        self.booster.compilers.look(self.model)
        self._join(self._replicas.active())
        if self._is_shared_out():
            self._adopt()

    def _is_shared_out(self) -> bool:
        """Tell a model that has been, by FSDP2 or by tensor parallelism.

        Raises:
            RuntimeError: If tensor parallelism has come after the optimizer.
        """
        if not self.parallel and is_parallel(self.model):
            raise RuntimeError(
                "the model's weights were cut by tensor parallelism after the optimizer was built, "
                "for a model of whole ones: call parallelize_module first, then fully_shard if "
                "both are used, then build the optimizer; finalize() takes this one off"
            )
        return self.parallel or is_sharded(self.model)

    def _after_call(self, module: nn.Module, args: object, output: object) -> None:
        """Have backward passes of this output averaged, whether or not they reach a factor."""
        if self.averager is None or torch.compiler.is_compiling():
            return
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(self.averager.queue)

    def _adopt(self) -> None:
        """Do once what a sharded model asks for.

        Raises:
            RuntimeError: If a ledger is kept, or boosters stand beside quantised weights.
        """
        if self.averager is not None:
            return
        if self.booster.beside:
            raise RuntimeError(
                "the model is quantised and was sharded after the optimizer was built: boosters "
                "stand beside weights that each process keeps whole. Train it under "
                "DistributedDataParallel"
            )
        if self.recorded:
            raise RuntimeError(
                "the model was sharded after the optimizer was built with record=, and a ledger "
                "keeps whole weights: pass record=None"
            )
        self.booster.reclaim()
        self.average(training_group(self.model))
        self._at_detach.callback(self.model.register_forward_hook(self._after_call).remove)
        trained = self.selection.trained  # FSDP2 may have gathered them for a call
        if trained and (is_sharded(self.model) or any(map(is_dtensor, trained))):
            # Their gradients are DTensors, the factors' are not, and clipping takes both at once.
            from torch.distributed.tensor.experimental import implicit_replication

            self._at_detach.enter_context(implicit_replication())

    def average(self, group: ProcessGroup | None, due: Callable[[], bool] = _always) -> None:
        """Average the factors' gradients from now on.

        Args:
            group: Over which processes.
            due: Tells, at the end of a backward pass, whether to average now.
        """
        self.group = group
        self.booster.tie_idle(False)
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
