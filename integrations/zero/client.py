"""What DeepSpeed is given in the place of an optimizer, and what follows each of its steps.

ZeRO flattens and shares out the Parameters of the optimizer it is given, and steps them group by
group. The factors stay out of that: they are small, kept whole by every process, and merged into
weights that ZeRO keeps. ZeRO is given the modules trained in full, if any, and an anchor: one small
Parameter of the model that is never changed, for ZeRO must have something to train.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_xgb import BoostedLowRankOptimizer

from .anchor import Anchor

__all__ = ["Client"]

_ENTRY = "boosted_low_rank"  # of ours in the checkpoint
_ROLE = "boosted"  # the entry of a param group that says what it holds
_PLAIN = (bool, int, float, tuple, list, type(None))


def _never() -> bool:
    return False


class Client(Optimizer):
    """The optimizer that ZeRO flattens: the anchor, and the modules trained in full.

    Its ``param_groups`` stand for the boosted optimizer's, one for one: whatever a scheduler writes
    into either reaches the other before the next step.

    Args:
        boosted: The optimizer whose model the engine trains.
        engine: The DeepSpeedEngine, its model placed and cast but not yet shared out by ZeRO.

    Attributes:
        optimizer: The boosted optimizer.
        overflowed: Whether the factors' gradients of the present step are not finite.
    """

    def __init__(self, boosted: BoostedLowRankOptimizer, engine: Any) -> None:  # noqa: ANN401
        self.optimizer = boosted
        self.engine = engine
        self.overflowed = False
        self._live = False
        self._norm: Tensor | None = None
        self._saving: dict[str, Any] | None = None
        boosted.boosting.set_apart(engine.device)
        groups = boosted.base.param_groups
        trained = [list(group["params"]) for group in groups[1:]]
        self._anchor = Anchor(boosted, tie=not engine.zero_optimization_partition_weights())
        self._fill = _filled(boosted.base, sum(trained, []))
        self._heads = _twin(boosted.base)
        held = [[self._anchor.parameter], *trained]
        super().__init__(
            [
                {**{k: v for k, v in group.items() if k != "params"}, "params": params, _ROLE: i}
                for i, (group, params) in enumerate(zip(groups, held, strict=True))
            ],
            dict(boosted.base.defaults),
        )
        for parameter in sum(trained, []):
            boosted.base.state.pop(parameter, None)
        for group in groups[1:]:
            group["params"] = []
        self._seen = [
            {k: v for k, v in g.items() if k in self.defaults and isinstance(v, _PLAIN)}
            for g in groups
        ]
        boosted.boosting.average_when(_never, engine.seq_data_parallel_group)
        boosted.boosting.at_leave(self._anchor.remove)

    def finalize(self, *, discard: bool = False) -> nn.Module:
        """Merge what is pending and return the model; under ZeRO-3 its weights stay shared out."""
        return self.optimizer.finalize(discard=discard)

    # One step of the engine: `begin`, then DeepSpeed's own, which calls `step` once or several
    # times, or not at all after an overflow, then `end`.

    @torch.no_grad()
    def begin(self) -> None:
        """Make the factors' gradients those of all processes, and look whether they are finite.

        Raises:
            RuntimeError: After ``finalize()``; or if a factor has no gradient, or not a finite one,
                and the policy is "error". Nothing is changed.
        """
        boosting, engine = self.optimizer.boosting, self.engine
        boosting.require_attached("engine.step()")
        self._follow_schedulers()
        boosting.average()
        scaled = engine.fp16_enabled()
        if scaled:  # the scale of the backward pass: DeepSpeed's step may change it
            torch._foreach_div_(self._gradients(), float(engine._get_optimizer_loss_scale()))
        self.overflowed = not boosting.check_gradients(skip=scaled)
        self._norm, self._live = None, True
        if engine.optimizer is not self:
            engine.optimizer.clip_grad = 0.0  # clipped here, together with the factors

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step whatever of the modules trained in full DeepSpeed has put into the groups.

        Outside a step of the engine it does nothing: DeepSpeed makes a dry run at the start in
        bfloat16 without ZeRO.
        """
        groups = [group for group in self.param_groups if group[_ROLE] and group["params"]]
        if not self._live or self.overflowed or not groups:
            return
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        self._clip([p.grad for p in parameters])
        for parameter in parameters:
            if self._fill and parameter not in self.state:
                self.state[parameter] = _like(self._fill, parameter)
        self._heads.param_groups, self._heads.state = groups, self.state
        self._heads.step()

    @torch.no_grad()
    def end(self, applied: bool) -> None:
        """Step the factors, unless DeepSpeed has skipped the step.

        Args:
            applied: Whether it was taken.
        """
        self._live = False
        if applied:
            if not self.overflowed:
                self._clip(self._gradients())
                self.engine._global_grad_norm = None if self._norm is None else float(self._norm)
            with self._rates_of_this_step():
                self.optimizer.step()
        for factor in self.optimizer.boosting.factors:
            factor.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what DeepSpeed writes into its checkpoint: our state beside ZeRO's."""
        if self._saving is not None:
            return {**super().state_dict(), _ENTRY: self._saving}
        self._follow_schedulers()
        return {**super().state_dict(), _ENTRY: self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume; DeepSpeed has loaded the model's weights before.

        Raises:
            ValueError: If the checkpoint is another optimizer's.
        """
        if _ENTRY not in state_dict:
            raise ValueError(
                "the DeepSpeed checkpoint was not saved by a BoostedLowRankOptimizer; load its "
                "weights alone with load_checkpoint(…, load_module_only=True)"
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != _ENTRY})
        self.optimizer.load_state_dict(state_dict[_ENTRY])
        for mine, seen in zip(self.param_groups, self._seen, strict=True):
            seen.update({key: mine[key] for key in seen})

    def hold_state(self) -> None:
        """Keep the state of now for ``state_dict()``, until ``release_state()``."""
        self._follow_schedulers()
        self._saving = self.optimizer.state_dict()

    def release_state(self) -> None:
        """End that."""
        self._saving = None

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.optimizer.boosting.lent if p.grad is not None]

    def _clip(self, gradients: list[Tensor]) -> None:
        """Scale gradients by what ``clip_grad_norm_`` would, over factors and heads together."""
        if self._norm is None:
            self._norm = self._joint_norm()
        limit = self.engine.gradient_clipping()
        if limit > 0 and gradients:
            torch._foreach_mul_(gradients, float((limit / (self._norm + 1e-6)).clamp(max=1.0)))

    def _joint_norm(self) -> Tensor:
        """Return ‖g‖₂ over the factors and what ZeRO trains; the anchor's gradient is zero."""
        own = self._gradients()
        norms = [n.double() for n in torch._foreach_norm(own)]
        wrapper = self.engine.optimizer
        if wrapper is not self:
            zeros = getattr(wrapper, "_global_grad_norm", None)
            norms.append(torch.as_tensor(0.0 if zeros is None else zeros).double())
        else:
            kept = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            norms += [gradient.norm().double() for gradient in kept]
        device = norms[0].device
        return torch.stack([n.to(device) for n in norms]).square().sum().sqrt()

    @contextmanager
    def _rates_of_this_step(self) -> Iterator[None]:
        """Keep what a scheduler has written meanwhile for the next step: the engine steps it."""
        groups = self.optimizer.param_groups
        later = [
            {key: group[key] for key in seen if group[key] != seen[key]}
            for group, seen in zip(groups, self._seen, strict=True)
        ]
        for group, seen, new in zip(groups, self._seen, later, strict=True):
            group.update({key: seen[key] for key in new})
        yield
        for group, new in zip(groups, later, strict=True):
            group.update(new)

    def _follow_schedulers(self) -> None:
        """Give both sides' groups whatever was last written into either."""
        for mine, theirs, seen in zip(
            self.param_groups, self.optimizer.param_groups, self._seen, strict=True
        ):
            for key in seen:
                if mine[key] != seen[key]:
                    theirs[key] = mine[key]
                else:
                    mine[key] = theirs[key]
                seen[key] = mine[key]


def _twin(base: Optimizer) -> Optimizer:
    """Return a second optimizer like one that has not stepped, without groups and state."""
    twin: Optimizer = object.__new__(type(base))
    twin.__dict__.update(base.__dict__)
    twin.param_groups, twin.state = [], defaultdict(dict)
    return twin


def _filled(base: Optimizer, trained: list[nn.Parameter]) -> dict[str, Any]:
    """Return the state that a class makes at construction, as Adagrad does, of one Parameter."""
    return dict(base.state.get(trained[0], {})) if trained else {}


def _like(fill: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    def one(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 0:
            return value.clone()
        return torch.full_like(parameter, float(value.reshape(-1)[0]))

    return {key: one(value) for key, value in fill.items()}
