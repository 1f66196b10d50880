"""Whether a step's gradients were finite, of a device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_xgb.processes import all_reduce
from torch_xgb.weights.transfers import Word, is_apart

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Verdict"]


class Verdict:
    """Keeps a step from doing harm on the device, and has the host hear of it one step later.

    Torch's fused optimizers are told not to step then, as GradScaler tells them. For any other base
    all gradients of such a step become zeros. So neither factors nor modules trained in full nor
    the base's state ever hold what is not a number. The host reads the flag when it next has
    something to decide: before the next step, and before anything is merged.

    Args:
        base: The optimizer.
    """

    def __init__(self, base: Optimizer) -> None:
        self._base = base
        self._awaited: Word | None = None

    @staticmethod
    def may_wait(flags: Sequence[Tensor]) -> bool:
        """Tell whether flags are of devices that are not to be waited for."""
        return bool(flags) and all(is_apart(flag.device) for flag in flags)

    @torch.no_grad()
    def expect(
        self, flags: Sequence[Tensor], gradients: Sequence[Tensor], group: ProcessGroup | None
    ) -> None:
        """Make gradients harmless, and begin to wait for what is to be said of them.

        Args:
            flags: Not zero where some gradient is not finite.
            gradients: All of the step's; written to.
            group: The processes that must decide alike, if there are several.
        """
        first = flags[0].device
        flag = flags[0]
        if len(flags) > 1:
            each = [one.to(first, torch.float32, non_blocking=True) for one in flags]
            flag = torch.stack(each).amax()
        if group is not None:
            all_reduce(flag, group, "MAX")
        self._awaited = Word(flag)
        if _is_fused(self._base):
            self._base.found_inf = flag  # type: ignore[attr-defined]
        else:
            _stop(gradients, flag != 0)

    def stepped(self) -> None:
        """Take note that the base has stepped, or has not come to it."""
        vars(self._base).pop("found_inf", None)

    def require(self) -> None:
        """Hear it, if it is awaited.

        Raises:
            RuntimeError: If the last step's gradients were not finite. Said once.
        """
        awaited, self._awaited = self._awaited, None
        if awaited is not None and any(awaited.read()):
            raise RuntimeError(
                "gradients of the step before were not finite; it trained nothing, or was "
                "taken with zeros in their places, and nothing was done since. "
                "Lower the learning rate or clip, or skip such steps with nonfinite='skip'; to go "
                "on all the same, call this again"
            )

    def forget(self) -> None:
        """Wait no more."""
        self._awaited = None


def _is_fused(base: Optimizer) -> bool:
    fused = getattr(base, "_step_supports_amp_scaling", False)
    return fused and type(base).__module__.startswith("torch.optim.")


def _stop(gradients: Sequence[Tensor], bad: Tensor) -> None:
    """Make gradients zeros if a flag of the device says so."""
    flags = {bad.device: bad}
    for gradient in gradients:
        device = gradient.device
        if device not in flags:
            flags[device] = bad.to(device, non_blocking=True)
        gradient.masked_fill_(flags[device], 0)
