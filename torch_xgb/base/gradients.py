"""The gradients of a step, before the base optimizer uses them: checked, and Eq. 7's λ added."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_xgb.base.verdict import Verdict
from torch_xgb.checks import non_negative, one_of
from torch_xgb.processes import anywhere
from torch_xgb.weights.dtensors import is_dtensor, local
from torch_xgb.weights.places import shard_group
from torch_xgb.weights.transfers import is_apart

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["GradientPolicy"]

Named = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class GradientPolicy:
    """What to do about gradients that are missing or not finite.

    Attributes:
        nonfinite: "error" or "skip" (the step).
        unused: "error" or "skip" (the factor).
        factor_l2: λ; 2λ times a factor is added to its gradient.

    References:
        Less is More: Extreme Gradient Boost Rank-1 Adaption (Zhang et al., 2024), Eq. 7.
    """

    nonfinite: str
    unused: str
    factor_l2: float

    def __post_init__(self) -> None:
        one_of("nonfinite", self.nonfinite, ("error", "skip"))
        one_of("unused", self.unused, ("error", "skip"))
        non_negative("factor_l2", self.factor_l2)

    def looking(self, skip: bool) -> GradientPolicy:
        """Return a policy like this that adds nothing to gradients.

        Args:
            skip: Whether one that is not finite skips the step, whatever ``nonfinite`` says.
        """
        return replace(self, factor_l2=0.0, nonfinite="skip" if skip else self.nonfinite)

    @torch.no_grad()
    def prepare(self, factors: Named, others: Named, verdict: Verdict | None = None) -> bool:
        """Check every gradient before it can do harm, and add λ's to the factors'.

        Args:
            factors: The drawn factors, each under its target's name.
            others: The parameters trained in full.
            verdict: Hears of gradients that are not finite, if the policy is "error" and their
                device is not to be waited for; None has them known at once.

        Returns:
            Whether the step may be taken.

        Raises:
            RuntimeError: If a drawn factor has no gradient, or a gradient is not finite, and the
                policy is "error". Nothing is changed.
        """
        missing = [name for name, p in factors if p.grad is None]
        if missing and self.unused == "error":
            raise RuntimeError(_no_gradient(list(dict.fromkeys(missing))))
        named = [(name, _own(p)) for name, p in factors if p.grad is not None]
        named += [(name, _values(p)) for name, p in others if p.grad is not None]
        flags = _flags([g for _, g in named])
        group = shard_group([p for _, p in others])  # whose shards differ: all decide alike
        if verdict is not None and self.nonfinite == "error" and verdict.may_wait(flags):
            verdict.expect(flags, [g for _, g in named], group)
        elif not self._are_finite(named, flags, group, others):
            return False
        if self.factor_l2:
            for _, p in factors:
                if p.grad is not None:
                    p.grad.add_(p, alpha=2 * self.factor_l2)
        return True

    def _are_finite(
        self,
        named: Sequence[tuple[str, Tensor]],
        flags: Sequence[Tensor],
        group: ProcessGroup | None,
        others: Named,
    ) -> bool:
        """Wait for the flags; names are looked for where one is set."""
        bad = []
        if any(bool(flag) for flag in flags):
            bad = [name for name, g in named if not g.isfinite().all()]
        if group is not None and anywhere(bool(bad), group, others[0][1].device) and not bad:
            bad = ["of another process's shard"]
        if bad and self.nonfinite == "error":
            raise RuntimeError(
                f"{len(bad)} gradients are not finite, first that of {bad[0]!r}; nothing was "
                "changed. Lower the learning rate or clip, or skip such steps with nonfinite='skip'"
            )
        return not bad


def _values(parameter: Tensor) -> Tensor:
    """Return the real numbers that this process keeps of a gradient."""
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()
        return parameter.grad.values()
    kept = local(_own(parameter))
    return torch.view_as_real(kept) if kept.is_complex() else kept


def _own(parameter: Tensor) -> Tensor:
    """Return a gradient that can be written to: no several entries of it in one place.

    One of which every process has an addend, as of norms between parallel maps, is summed.
    """
    gradient = parameter.grad
    assert gradient is not None
    if is_dtensor(gradient) and is_dtensor(parameter):
        if any(placement.is_partial() for placement in gradient.placements):
            gradient = parameter.grad = gradient.redistribute(placements=parameter.placements)
    if 0 in gradient.stride():
        gradient = parameter.grad = gradient.clone(memory_format=torch.contiguous_format)
    return gradient


def _flags(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return numbers that are zero if all gradients are finite, one for each device.

    Found by GradScaler's kernel, many times faster than by norms. It multiplies them by one.
    """
    alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for g in gradients:
        alike[g.device, g.dtype].append(g)
    found: dict[torch.device, Tensor] = {}
    for (device, _), some in alike.items():
        if device not in found:
            found[device] = torch.zeros((), device=device, dtype=torch.float32)
        if device.type == "cpu" or is_apart(device):
            one = torch.ones((), device=device, dtype=torch.float32)
            torch._amp_foreach_non_finite_check_and_unscale_(some, found[device], one)
        else:
            found[device] += ~torch.stack([g.isfinite().all() for g in some]).all()
    return list(found.values())


def _no_gradient(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
    return (
        f"{len(names)} drawn targets got no gradient: {shown}. Either backward() has not run since "
        "the last zero_grad(), or the loss is of another model than this optimizer's, made anew or "
        "copied since; or the module's forward is bypassed, as by a fused kernel that reads the "
        "weight itself: leave it out with exclude_modules; or the batch was routed past it: pass "
        "unused='skip'; or gradient checkpointing with use_reentrant=True got inputs "
        "without gradient: take use_reentrant=False, or call model.enable_input_require_grads()"
    )
