"""The factors' gradients, averaged over processes where nobody else does it.

``DistributedDataParallel`` averages what it finds in the model. Where weights are sharded, whoever
shards them never sees the factors: they are small, and every process keeps them whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.processes import all_reduce

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Averager"]


class Averager:
    """Averages gradients at the end of each backward pass, with one all-reduce.

    So whatever follows a backward pass, clipping first of all, sees averaged gradients. Gradients
    that accumulate over several passes may be averaged after each of them or only after the last,
    the mean is the same.

    Args:
        factors: Every factor Parameter.
        lent: Returns those in use.
        group: The processes; None if there is only this one.
        due: Tells whether a backward pass is one to average after.
        partial: Whether a process may lack gradients that others have, and then gets the mean.

    Attributes:
        bytes: Sent to the all-reduce so far, by this process.
    """

    def __init__(
        self,
        factors: Sequence[nn.Parameter],
        lent: Callable[[], Sequence[nn.Parameter]],
        group: ProcessGroup | None,
        due: Callable[[], bool],
        partial: bool = False,
    ) -> None:
        self.lent = lent
        self.partial = partial
        self.group = group
        self.due = due
        self.bytes = 0
        self._ran = False
        self._queued: set[int] = set()  # backward passes that will average at their end
        self._handles: list[RemovableHandle] = [
            factor.register_post_accumulate_grad_hook(self.queue) for factor in factors
        ]

    def remove(self) -> None:
        """Stop."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def had_backward(self) -> bool:
        """Return whether there was a backward pass since this was last asked."""
        ran, self._ran = self._ran, False
        return ran

    def queue(self, _: Tensor) -> None:
        """Average at the end of the backward pass that this is called in, as a hook.

        Passes are told apart by autograd's number of them: one that raises never comes to its end.
        """
        self._ran = True
        if (number := torch._C._current_graph_task_id()) not in self._queued:
            self._queued.add(number)
            torch.autograd.Variable._execution_engine.queue_callback(
                functools.partial(self._finish, number)
            )

    @torch.no_grad()
    def _finish(self, number: int) -> None:
        self._queued.discard(number)
        if self.due():
            self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Replace every gradient by its mean over the processes.

        If this process may lack one, it counts as zero, and counts travel along: a factor that no
        process has a gradient for keeps none. If it may not, it counts as not a number, so that no
        process goes on with what the others have.
        """
        if self.group is None:
            return
        factors = list(self.lent())
        lacked = 0.0 if self.partial else float("nan")
        own = [torch.full_like(f, lacked) if f.grad is None else f.grad for f in factors]
        sent = [gradient.reshape(-1) for gradient in own]
        if self.partial:
            sent.append(own[0].new_tensor([f.grad is not None for f in factors]))
        flat = torch.cat(sent)
        all_reduce(flat, self.group)
        self.bytes += flat.numel() * flat.element_size()
        flat /= distributed.get_world_size(self.group)
        means = flat.split([part.numel() for part in sent])
        torch._foreach_copy_(own, [m.view_as(g) for m, g in zip(means, own, strict=False)])
        if self.partial:
            for factor, gradient, share in zip(factors, own, means[-1].tolist(), strict=True):
                factor.grad = gradient if share else None
