"""BoostedLowRankOptimizer: XGBLoRA in the place of an optimizer."""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_xgb.admission import admit
from torch_xgb.agreement import agree
from torch_xgb.base import FreshStart, build
from torch_xgb.booster import Booster
from torch_xgb.carry import Carry
from torch_xgb.checkpointing import Checkpointing
from torch_xgb.configuration import VERSION, check, check_together, comparable, plain_kappa
from torch_xgb.directions import INITS, aim, turn
from torch_xgb.forms import form
from torch_xgb.gradients import GradientPolicy
from torch_xgb.heads import select_saved
from torch_xgb.knots import LossPolicy, mean_over_ranks
from torch_xgb.ledger import Chain
from torch_xgb.lowrank import frobenius_norms
from torch_xgb.merge import Merger
from torch_xgb.places import sharing_processes
from torch_xgb.rates import RateFactors, scaled_lr
from torch_xgb.recorder import recorder
from torch_xgb.report import Listeners, MergeReport
from torch_xgb.resume import Pending
from torch_xgb.samplers import Sampler, sampler, stream
from torch_xgb.schedule import (
    BoosterPlan,
    PerBooster,
    Plan,
    PositiveInteger,
    Progress,
    boundary,
    layers_share,
    valid_shrinkage,
)
from torch_xgb.settings import finite_positive, integer, one_of, probability, share
from torch_xgb.sharing import Sharing
from torch_xgb.targets import check_rank, check_untied, select_layers

__all__ = ["BoostedLowRankOptimizer", "MergeReport"]

LayersPerBooster = int | float | Sequence[int | float] | Callable[[int], int | float] | None


class BoostedLowRankOptimizer(Optimizer):
    r"""Trains a model as gradient boosting with low-rank boosters (XGBLoRA), in an existing loop.

    .. math:: W \leftarrow W + \alpha_t\, s\, B_t A_t, \qquad t = 1, 2, \dots

    For each booster t it draws ``layers_per_booster`` of the model's blocks, gives every designated
    weight (out, in) of a drawn block a fresh pair A (r, in), B = 0 (out, r), lets the base
    optimizer train the pairs for ``kappa`` steps with the weights frozen, merges them, and drops
    the base optimizer's state with them. The Parameters that are trained, ``param_groups[0]``, are
    the same objects from the first booster to the last.

    Args:
        optimizer_class: The base: a ``torch.optim.Optimizer`` subclass, or a callable that takes
            parameter groups (and ``optimizer_kwargs``) and returns an Optimizer. LBFGS and
            SparseAdam are refused.
        model: Adapted in place. Its blocks are found by structure; of a model without repeated
            blocks, each linear map is a layer of its own.
        r: The boosters' rank: a number, one per booster (the last goes on), or a callable of t. A
            smaller rank uses a part of the same Parameters.
        kappa: κ, steps per booster: a number, a callable of t, increasing knots τ₁ < τ₂ < … in
            steps of the whole run (COLA), a policy that watches the loss such as ``LossPlateau``,
            or None: one booster, merged by ``finalize()`` (LoRA).
        layers_per_booster: L_s, how many blocks a booster draws: a number (capped at all), a share
            in (0, 1] as a float, None for every block, or a sequence or callable of these.
        target_modules: PEFT's grammar: "all-linear" (every linear map inside the blocks), a list of
            names or name suffixes, or a regular expression for whole names. A match outside the
            blocks becomes a layer. Frozen weights are targets like any other.
        exclude_modules: What to leave out, as a list or a regular expression.
        modules_to_save: Names or suffixes of modules trained in full beside the boosters; None
            finds the new task head of a transformers model, [] trains none.
        lora_alpha: The scaling is s = lora_alpha / r, or 1 with None.
        lora_dropout: Probability of dropping an input of A in training.
        adapter: "lora" edits weights, "direft" outputs: y + s·B(A y + b), merged exactly (MeFT).
        bias: "targets" trains a bias beside the pair wherever a linear map has one (COLA), "none"
            none. A DiReFT pair has its own.
        shrinkage: α_t: a number, a sequence, or a callable of t.
        factor_l2: λ of Eq. 7; 2λ times the factor is added to its gradient at each step, after any
            clipping.
        layer_sampler: "uniform" (the paper), "cyclic" (every block once before any twice), "window"
            (neighbours), "least-used", ``Weighted(odds)``, or any callable
            ``(seed, t, num_layers, layers_per_booster) -> indices``.
        init: How A begins: "kaiming" (the paper: drawn like LoRA's), or "gradient": the first
            step of a booster, which trains no pair, makes A a random combination of the rows of
            the weight's gradient, found without a gradient of full size.
        carry: None (the paper) starts every booster anew. A number ρ in [0, 1] has a target that is
            drawn again take up its last pair: the same A and optimizer state, and ρ times its B,
            taken out of the weight again, so that the model computes what it did. See
            docs/algorithm.md.
        merge_precision: What happens to the part of an update that a weight's dtype cannot hold:
            "nearest" forgets it, "stochastic" rounds at random, "residual" carries it to the next
            merge, "auto" is "residual" for weights of less than 32 bits and "nearest" for others.
        residual_device: Where residuals live, e.g. "cpu"; None keeps them beside their weights.
        checkpointing: Compute blocks again in backward instead of keeping their activations: True
            for every block, or a share of them in (0, 1]. The results are the same. It begins at
            the lowest drawn block, and begins nothing that a block's own checkpointing does.
        rewarmup_steps: The factors' learning rate rises over so many steps of every booster but the
            first, on top of any scheduler.
        rank_lr_exponent: e of a factor (r_t / r_0)^e on it; MeFT's η ∝ r^(−1/4) is −0.25.
        nonfinite: A NaN or infinite gradient raises a RuntimeError ("error"), or skips the step,
            which then does not count ("skip").
        unused: A drawn factor without gradient raises a RuntimeError ("error") or is left as it is
            ("skip"), as models need that route batches past some of their blocks (mixtures of
            experts, layer dropping).
        record: Keep the ledger of boosters, ``chain``: in memory with True, or in a folder's path
            (needs safetensors).
        seed: Of draws, initial factors and rounding, each a pure function of (seed, t).
        **optimizer_kwargs: For the base, e.g. ``lr``.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a value out of range, no targets, or a model that cannot be adapted.
        RuntimeError: If the model belongs to another BoostedLowRankOptimizer. Whatever is raised,
            the model is left as it was.

    Example:
        >>> from torch import nn
        >>> from torch.optim import AdamW
        >>> model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
        >>> optimizer = BoostedLowRankOptimizer(AdamW, model, kappa=2, lr=1e-2)
        >>> for _ in range(6):
        ...     model(torch.ones(1, 8)).square().sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> optimizer.booster_index
        3
        >>> model = optimizer.finalize()

    References:
        Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of LLMs
        (Zhang et al., 2024), https://arxiv.org/abs/2410.19694, Eqs. 7 and 8.
    """

    base: Optimizer
    _progress: Progress

    def __init__(
        self,
        optimizer_class: Callable[..., Optimizer],
        model: nn.Module,
        *,
        r: int | Sequence[int] | Callable[[int], int] = 1,
        kappa: int | Sequence[int] | Callable[[int], int] | LossPolicy | None = 8,
        layers_per_booster: LayersPerBooster = 8,
        target_modules: str | Sequence[str] = "all-linear",
        exclude_modules: str | Sequence[str] | None = None,
        modules_to_save: Sequence[str] | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        adapter: str = "lora",
        bias: str = "none",
        shrinkage: float | Sequence[float] | Callable[[int], float] = 1.0,
        factor_l2: float = 0.0,
        layer_sampler: str | Sampler = "uniform",
        init: str = "kaiming",
        carry: float | None = None,
        merge_precision: str = "auto",
        residual_device: torch.device | str | None = None,
        checkpointing: bool | float = False,
        rewarmup_steps: int = 0,
        rank_lr_exponent: float = 0.0,
        nonfinite: str = "error",
        unused: str = "error",
        record: bool | str | os.PathLike[str] | None = None,
        seed: int = 0,
        **optimizer_kwargs: Any,
    ) -> None:
        self.model = model
        inner = _uncompiled(model)
        admit(inner)
        saved = select_saved(inner, modules_to_save)
        layers = select_layers(inner, target_modules, exclude_modules, saved.values())
        self._init = one_of("init", init, list(INITS))
        self._ends = boundary(kappa, INITS[init])
        self._carry = None if carry is None else Carry(share("carry", carry))
        check_together(init, carry, shrinkage, record)
        self._policy = kappa if isinstance(kappa, LossPolicy) else None
        self._plan = Plan(
            seed := integer("seed", seed),
            len(layers),
            sampler(layer_sampler),
            PerBooster("layers_per_booster", layers_per_booster, layers_share),
            PerBooster("r", r, PositiveInteger("r")),
            PerBooster("shrinkage", shrinkage, valid_shrinkage),
            None if lora_alpha is None else finite_positive("lora_alpha", lora_alpha),
        )
        check_rank(self._plan.most_r, layers)
        shape = form(adapter, bias)
        check_untied(
            inner, (w for layer in layers for t in layer.targets for w in shape.weights(t))
        )
        first = self._plan.booster(0)
        self._gradients = GradientPolicy(nonfinite, unused, factor_l2)
        self._rates = RateFactors(rewarmup_steps, rank_lr_exponent, first.r)
        self._merger = Merger(merge_precision, seed, residual_device)
        self._checkpointing = Checkpointing(inner, checkpointing)
        self._booster = Booster(
            layers,
            self._plan.most_L_s,
            self._plan.most_r,
            shape,
            probability("lora_dropout", lora_dropout),
        )
        carried = {} if self._carry is None else self._carry.held
        self._pending = Pending(self._booster.every_adapter, self._merger, carried)
        self._listeners = Listeners()
        self._finalized = False
        factors = self._booster.factors
        trained = list(dict.fromkeys(p for module in saved.values() for p in module.parameters()))
        self.base = build(optimizer_class, factors, trained, optimizer_kwargs)
        self._fresh_start = FreshStart(self.base, factors)
        self._settings = {
            "optimizer_class": type(self.base).__name__,
            "adapter": adapter,
            "bias": bias,
            "r": self._plan.r.plain,
            "kappa": plain_kappa(kappa),
            "layers_per_booster": self._plan.layers_per_booster.plain,
            "layer_sampler": layer_sampler if isinstance(layer_sampler, str) else "callable",
            "lora_alpha": self._plan.lora_alpha,
            "init": init,
            "carry": None if self._carry is None else self._carry.share,
            "merge_precision": merge_precision,
            "modules_to_save": sorted(saved),
            "seed": seed,
            "targets": {t.name: list(t.shape) for layer in layers for t in layer.targets},
        }
        agree(
            {
                **self._settings,
                **comparable(optimizer_kwargs),
                "shrinkage": self._plan.shrinkage.plain,
                "factor_l2": factor_l2,
                "lora_dropout": lora_dropout,
                "layers drawn first": first.layers,
            },
            ((w.name, w.parameter) for w in self._pending.weights),
            sharing_processes(inner),
        )
        state = self.base.state
        super().__init__(self.base.param_groups, self.base.defaults)
        # Optimizer.__init__ empties it, and Adagrad fills it at construction.
        self.base.state = state
        self._recorder = recorder(
            record,
            inner,
            layers,
            self._booster.form,
            saved,
            adapter=adapter,
            precision=merge_precision,
            seed=seed,
        )
        self._sharing = Sharing(
            inner, self._booster, list(saved.values()), record is not None, unused == "skip"
        )
        self._enter(inner, saved.values(), first)

    # What the ecosystem reads of an optimizer is the base's: its load_state_dict replaces them.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's groups: [0] the factors, [1] the modules trained in full, if any."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The base's state."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    @property
    def booster_index(self) -> int:
        """t, the number of boosters merged before the active one."""
        return self._progress.booster_index

    @property
    def booster_step(self) -> int:
        """Steps taken in the active booster."""
        return self._progress.booster_step

    @property
    def active_layers(self) -> tuple[str, ...]:
        """Names of the blocks the active booster holds."""
        return tuple(self._booster.layers[i].name for i in self._booster.drawn)

    @property
    def active_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The active booster's (A, B) per target module: the live Parameters.

        Under a rank schedule, a booster of a lower rank uses views of a part of them.
        """
        pairs = {a.target.name: a.factors for a in self._booster.active}
        return {name: (factors[0], factors[1]) for name, factors in pairs.items()}

    @property
    def targets(self) -> dict[str, str]:
        """Every module that may be drawn, with its layer's name."""
        return {t.name: layer.name for layer in self._booster.layers for t in layer.targets}

    @property
    def chain(self) -> Chain | None:
        """The ledger of the boosters merged so far, if ``record`` asked for one."""
        return None if self._recorder is None else self._recorder.chain

    def on_merge(self, fn: Callable[[MergeReport], object]) -> RemovableHandle:
        """Call ``fn(report)`` after each merge; the handle's ``remove()`` ends that."""
        return self._listeners.add(fn)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of the base; at the κ-th of a booster, merge it and begin the next.

        Args:
            closure: Re-evaluates the model and returns the loss, as for any optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: After ``finalize()``; or if a drawn factor has no gradient, or a gradient
                is not finite, in which case nothing is changed.
        """
        self._require_attached("step()")
        self._sharing.before_step(self.base)
        if self._recorder is not None and self.booster_step == 0:
            self._recorder.check(self.booster_index)
        factor = self._rates(self._progress, self._active.r)
        try:
            with scaled_lr(self.base.param_groups[0], factor):
                loss = self._fresh_start.watch(self.base, lambda: self._base_step(closure))
        except _Skipped as skipped:
            return skipped.loss
        self._progress = self._progress.stepped()
        self._pending.resumed.untouched = False
        if self._ends(self._progress):
            self.merge()
        return loss

    def observe(self, loss: float | Tensor) -> None:
        """Show the step's loss to the policy given as ``kappa``; without one, do nothing.

        Call it before ``step()``, with the mean over accumulated batches. Over several processes
        the loss is averaged, so that all decide alike. A closure given to ``step()`` is observed by
        itself.
        """
        if self._policy is not None:
            self._policy.observe(mean_over_ranks(loss))

    @property
    def converged(self) -> bool:
        """Whether the policy given as ``kappa`` says that further boosters are not worth it."""
        return self._policy is not None and self._policy.converged

    def merge(self) -> None:
        """End the active booster now: merge it, draw the next, start it afresh.

        Raises:
            RuntimeError: After ``finalize()``; or if a factor is not finite, in which case nothing
                is changed.
        """
        self._require_attached("merge()")
        progress = self._progress.next()
        planned = self._plan.booster(progress.booster_index)
        report = self._merge_active()
        if self._carry is not None:
            self._carry.put_down(self._booster.active, self.base)
        self._begin(progress, planned)
        self._listeners.tell(report)

    def finalize(self, *, discard: bool = False) -> nn.Module:
        """Merge what is pending, take everything off the model, give ``requires_grad`` back.

        Args:
            discard: Drop the pending booster instead, for one that diverged: the model is what the
                boosters before it made.

        Returns:
            The model, plain again. A second call does nothing.

        Raises:
            RuntimeError: If the pending booster is not finite and is not to be dropped, or holds
                what ``carry`` took out of the weights and is. Nothing is changed.
        """
        if not self._finalized:
            taken_up = self._carry is not None and any(a.pending for a in self._booster.active)
            if discard and taken_up:
                raise RuntimeError(
                    "the pending booster holds what carry= took out of the weights: dropping it "
                    "would lose earlier boosters too. Load the last checkpoint instead"
                )
            begun = not discard and (self.booster_step or taken_up)
            report = self._merge_active() if begun else None
            self._leave()
            self._finalized = True
            if report is not None:
                self._listeners.tell(report)
        return self.model

    def _enter(self, model: nn.Module, saved: Iterable[nn.Module], first: BoosterPlan) -> None:
        """Put everything into the model and begin; or leave it as it was."""
        gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        try:
            self._booster.attach(model, saved)
            self._pending.attach()
            self._checkpointing.attach()
            self._begin(Progress(), first)
        except BaseException:
            self._leave()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            raise

    def _leave(self) -> None:
        """Take everything off the model."""
        self._pending.detach()
        self._booster.detach()
        self._checkpointing.detach()
        self._sharing.detach()

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the model's own: tensors and plain types only."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._sharing.settle(self.base)
        state_dict = {
            **self.base.state_dict(),
            "booster": {
                "version": VERSION,
                "settings": dict(self._settings),
                "booster_index": self.booster_index,
                "booster_step": self.booster_step,
                "total_steps": self._progress.total_steps,
                "active": {
                    "layers": list(self._active.layers),
                    "r": self._active.r,
                    "s": self._active.s,
                    "alpha": self._active.alpha,
                },
                "policy": None if self._policy is None else self._policy.state_dict(),
                "carry": None if self._carry is None else self._carry.state_dict(),
                "factors": [p.detach() for p in self._booster.factors],
                "weights": self._pending.state_dict(),
                "run": None if self._recorder is None else self._recorder.chain.run,
            },
        }
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state saved beside the model's; load the model's first.

        The model may hold the weights of its ``state_dict()``, where a pending booster is folded
        in, or still the frozen ones of the moment of saving.

        Raises:
            ValueError: If the state is of another optimizer, model or configuration.
            RuntimeError: If it does not belong to the model's present weights, or after
                ``finalize()``. Nothing is changed.
        """
        self._require_attached("load_state_dict()")
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        saved = state_dict.get("booster")
        if not isinstance(saved, Mapping):
            raise ValueError("not a state of BoostedLowRankOptimizer: it has no entry 'booster'")
        check(saved, self._settings)
        self._sharing.settle(self.base)
        folded = self._pending.find_folded(saved["weights"])
        at = saved["booster_index"], saved.get("run")
        if self._recorder is not None:
            self._recorder.check_resumable(*at)
        # A copy: torch's own load_state_dict would share the tensors with the state it is given.
        self.base.load_state_dict(
            copy.deepcopy({k: v for k, v in state_dict.items() if k != "booster"})
        )
        self._sharing.share_out(self.base)
        counters = ("booster_index", "booster_step", "total_steps")
        self._progress = Progress(*(saved[counter] for counter in counters))
        self._active = BoosterPlan(**saved["active"])
        self._booster.bind(list(self._active.layers), self._active.r, self._active.s)
        if self._policy is not None:
            self._policy.load_state_dict(saved["policy"])
        if self._carry is not None:
            self._carry.load_state_dict(saved["carry"], self.base)
        for parameter, value in zip(self._booster.factors, saved["factors"], strict=True):
            parameter.copy_(value)
        self._pending.load_state_dict(saved["weights"], folded)
        if self._recorder is not None:
            self._recorder.resume(*at)  # last: what it drops is gone
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what is ours: schedulers patch ``step`` on the instance, which cannot travel."""
        torchs = ("_optimizer_", "_zero_grad_profile_name", "_patched_step_function", "step")
        return {key: value for key, value in self.__dict__.items() if not key.startswith(torchs)}

    def __deepcopy__(self, memo: dict[int, Any]) -> BoostedLowRankOptimizer:
        """Copy it with its model, the booster going on in both."""
        twin: BoostedLowRankOptimizer = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin._pending.follow(self._pending)
        return twin

    def _base_step(self, closure: Callable[[], float] | None) -> float | None:
        if closure is None:
            self._prepare_gradients(None)
            return self.base.step()

        def evaluated() -> float:
            with torch.enable_grad():
                loss = closure()
            self.observe(loss)
            self._prepare_gradients(loss)
            return loss

        return self.base.step(evaluated)

    def _prepare_gradients(self, loss: float | None) -> None:
        others = [
            (f"parameter {i} of group {g}", p)
            for g, group in enumerate(self.param_groups[1:], 1)
            for i, p in enumerate(group["params"])
        ]
        if not self._gradients.prepare(self._booster.named, others):
            raise _Skipped(loss)
        if self._init == "gradient" and self.booster_step == 0:
            self._booster.reset(self._stream("factors"))
            turn(self._booster.active)

    def _merge_active(self) -> MergeReport:
        """Merge the active booster (Eq. 8): W ← W + α_t·s·B A."""
        self._sharing.settle(self.base)
        t, active = self.booster_index, self._booster.active
        updates = {a.target.name: a.updates(self._active.alpha) for a in active}
        products = [update for pairs in updates.values() for _, update in pairs]
        found = frobenius_norms(products).tolist()
        if not all(map(isfinite, found)):
            raise RuntimeError(
                f"booster {t} is not finite and was not merged; the weights are unharmed. Lower "
                "the learning rate or clip the gradients; finalize(discard=True) drops the booster"
            )
        each = iter(found)
        norms = {name: [next(each) for _ in pairs][0] for name, pairs in updates.items()}
        report = MergeReport(t, self.active_layers, self.booster_step, self._active.r, norms, {})
        if self._recorder is not None:
            self._recorder.write(report, [pair for pairs in updates.values() for pair in pairs])
        lost = {
            name: [self._merger.merge(weight, *update, t) for weight, update in pairs][0]
            for name, pairs in updates.items()
        }
        return replace(report, lost={n: share for n, share in lost.items() if share is not None})

    def _begin(self, progress: Progress, planned: BoosterPlan) -> None:
        """Begin a booster: new layers, fresh A, zero B, the base's state as if never stepped."""
        self._progress, self._active = progress, planned
        self._booster.bind(planned.layers, planned.r, planned.s)
        self._booster.reset(self._stream("factors"))
        if self._init == "gradient":
            aim(self._booster.active, self._stream("signs"))
        self._fresh_start.apply(self.base, counters=self._carry is None)
        if self._carry is not None:
            self._carry.take_up(self._booster.active, self.base, self._merger, self.booster_index)
        if self._policy is not None:
            self._policy.begin()

    def _stream(self, purpose: str) -> torch.Generator:
        return stream(self._plan.seed, self.booster_index, purpose)

    def _require_attached(self, call: str) -> None:
        if self._finalized:
            raise RuntimeError(
                f"{call} after finalize(): the model is plain again; build a new optimizer"
            )


class _Skipped(Exception):
    """A step was skipped for a gradient that is not finite."""

    def __init__(self, loss: float | None) -> None:
        super().__init__()
        self.loss = loss


def _uncompiled(model: nn.Module) -> nn.Module:
    inner = model._modules.get("_orig_mod") if isinstance(model, nn.Module) else None
    return model if inner is None else inner
