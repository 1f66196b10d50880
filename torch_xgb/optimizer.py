"""BoostedLowRankOptimizer: XGBLoRA in the place of an optimizer."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_xgb.base.front import Front
from torch_xgb.boosters.report import MergeReport
from torch_xgb.boosting.checkpoint import resume, save
from torch_xgb.boosting.handle import Boosting
from torch_xgb.boosting.summary import Summary, summarised
from torch_xgb.ledger.chain import Chain, ExportReport
from torch_xgb.schedule import Decay, LossPolicy, Sampler
from torch_xgb.settings import Settings

__all__ = ["BoostedLowRankOptimizer", "MergeReport"]


class BoostedLowRankOptimizer(Front):
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
        modules_to_save: Modules trained in full beside the boosters, by the same grammar. None
            finds what is new: the task head of a transformers, timm or torchvision model and what
            its checkpoint lacked, your own layers around such a model, the maps after the blocks of
            any other (no output embedding, and nothing you froze); a warning names what outside the
            blocks may be new and stays frozen. [] trains none and is silent.
        modules_to_save_optimizer: An optimizer of their own for these modules, where the base is
            none for them (Muon and a head): a class, or a callable that takes parameter groups.
        head_lr: A learning rate of their own for these modules; None is the base's. Schedulers
            change both alike.
        lora_alpha: The scaling is s = lora_alpha / r; None is s = 1, as the paper writes it.
        lora_dropout: Probability of dropping an input of A in training.
        adapter: "lora" edits weights, "direft" outputs: y + s·B(A y + b), merged exactly (MeFT).
        bias: "targets" trains the biases of linear maps, too (COLA). A DiReFT pair has its own.
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
            taken out of the weight again, so that the model computes what it did. A sequence or
            callable gives booster t its ρ; ``Decay(d)`` ties it to the learning rate.
        target_parameters: Bare Parameters to be adapted too, by PEFT's word: a list of names or
            name suffixes, e.g. ``["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]``, or a
            regular expression. One of three dimensions is a stack of E matrices, as mixtures of
            experts keep them, and gets E pairs.
        merge_precision: What happens to the part of an update that a weight's dtype cannot hold:
            "nearest" forgets it, "stochastic" rounds at random, "residual" carries it to the next
            merge, "auto" is "residual" for weights of less than 32 bits and "nearest" for others.
        accumulator_rank: Of a quantised model, whose weights stay as they are, merged boosters add
            up beside each weight, to a sum of at most this rank: the adapter it becomes. What has
            no room is dropped and reported.
        residual_device: Where residuals live, e.g. "cpu"; None keeps them beside their weights.
        checkpointing: Compute blocks again in backward instead of keeping their activations: True
            for every block, or a share of them in (0, 1]. The results are the same. It begins at
            the lowest drawn block, and begins nothing that a block's own checkpointing does.
        rewarmup_steps: The factors' learning rate rises over so many steps of every booster but the
            first, on top of any scheduler.
        rank_lr_exponent: e of a factor (r_t / r_0)^e on it; MeFT's η ∝ r^(−1/4) is −0.25.
        nonfinite: A NaN or infinite gradient raises a RuntimeError ("error"; on CUDA one step late,
            the step doing no harm), or skips the step, which then does not count ("skip").
        unused: A drawn factor without gradient raises a RuntimeError ("error") or is left as it is
            ("skip"), for models that route batches past blocks (experts, layer dropping).
        record: Keep the ledger of boosters, ``chain``: in memory with True, or in a folder's path.
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
        >>> from torch_xgb import BoostedLowRankOptimizer
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
        COLA: Chain of LoRA (Xia et al., 2024), https://arxiv.org/abs/2401.04151.
    """

    boosting: Boosting

    def __init__(
        self,
        optimizer_class: Callable[..., Optimizer],
        model: nn.Module,
        *,
        r: int | Sequence[int] | Callable[[int], int] = 1,
        kappa: int | Sequence[int] | Callable[[int], int] | LossPolicy | None = 8,
        layers_per_booster: int | float | Sequence[float] | Callable[[int], float] | None = 8,
        target_modules: str | Sequence[str] = "all-linear",
        exclude_modules: str | Sequence[str] | None = None,
        modules_to_save: str | Sequence[str] | None = None,
        modules_to_save_optimizer: Callable[..., Optimizer] | None = None,
        head_lr: float | None = None,
        lora_alpha: float | None = 16.0,
        lora_dropout: float = 0.0,
        adapter: str = "lora",
        bias: str = "none",
        shrinkage: float | Sequence[float] | Callable[[int], float] = 1.0,
        factor_l2: float = 0.0,
        layer_sampler: str | Sampler = "uniform",
        init: str = "kaiming",
        carry: float | Sequence[float] | Callable[[int], float] | Decay | None = None,
        target_parameters: str | Sequence[str] | None = None,
        merge_precision: str = "auto",
        accumulator_rank: int = 32,
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
        told = dict(locals())  # before anything else: every argument by its name
        self.model = model
        self.boosting = Boosting(model, Settings.of(told))
        base = optimizer_class, self.boosting.factors, optimizer_kwargs
        in_full = self.boosting.trained, modules_to_save_optimizer, head_lr
        super().__init__(self.boosting.followed, *base, *in_full)
        self.boosting.agree(self.base)
        self.boosting.enter(self._wrapped)

    @property
    def booster_index(self) -> int:
        """t, the number of boosters merged before the active one."""
        return self.boosting.course.progress.booster_index

    @property
    def booster_step(self) -> int:
        """Steps taken in the active booster."""
        return self.boosting.course.progress.booster_step

    @property
    def active_layers(self) -> tuple[str, ...]:
        """Names of the blocks the active booster holds."""
        return self.boosting.booster.active_layers

    @property
    def active_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The active booster's (A, B) per target module: the live Parameters.

        Under a rank schedule, a booster of a lower rank uses views of a part of them.
        """
        return {n: (pair.A, pair.B) for n, pair in self.boosting.booster.active_pairs.items()}

    @property
    def targets(self) -> dict[str, str]:
        """Every module that may be drawn, with its layer's name."""
        return {
            t.name: layer.name for layer in self.boosting.selection.layers for t in layer.targets
        }

    @property
    def chain(self) -> Chain | None:
        """The ledger of the boosters merged so far, if ``record`` asked for one."""
        return None if self.boosting.writer is None else self.boosting.writer.chain

    def summary(self) -> Summary:
        """What was found, drawn and is trained, what stays frozen, and memory: print it."""
        return summarised(self.boosting, self.base)

    def __repr__(self) -> str:
        return self.summary().short

    def on_merge(self, fn: Callable[[MergeReport], object]) -> RemovableHandle:
        """Call ``fn(report)`` after each merge; the handle's ``remove()`` ends that."""
        return self.boosting.listeners.add(fn)

    @_disable_dynamo  # a compiler would trace every merge, for minutes
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
        with self.boosting.alone:
            self.boosting.require_attached("step()")
            if self._wrapped.only_fills_state():
                return None
            if self.boosting.pace.catch_up() and closure is None:
                return warnings.warn(_TRAINED_NOTHING, stacklevel=2)
            self.boosting.before_step(self.base)
            try:
                loss = self._wrapped.step(lambda: self._train(closure), self.boosting.course.rate)
            except _Skipped as skipped:
                return skipped.loss
            self.boosting.pace.stepped()
            return loss

    def merge(self) -> None:
        """End the active booster now: merge it, forget it, draw the next and start it afresh.

        Raises:
            RuntimeError: After ``finalize()``; or if a factor is not finite. Nothing is changed.
        """
        self.boosting.require_attached("merge()")
        self.boosting.merge()

    def finalize(self, *, discard: bool = False, dequantize: bool = False) -> nn.Module:
        """Merge what is pending, take everything off the model, give ``requires_grad`` back.

        Args:
            discard: Drop the pending booster instead, for one that diverged: the model is what the
                boosters before it made. What ``carry`` took out of the weights is put back.
            dequantize: Of a quantised model, make its linear maps plain ones whose weights hold
                what was trained. Otherwise that stays beside them: see ``save_adapter``.

        Returns:
            The model, plain again. A second call does nothing more.

        Raises:
            RuntimeError: If the pending booster is not finite and is not to be dropped. Nothing is
                changed.
        """
        if self.boosting.attached:
            self.boosting.complete()
            begun = not discard and bool(self.booster_step or self.boosting.taken_up)
            self.boosting.finish(merged=begun, dropped=discard)
        if dequantize:
            self.boosting.outcome.dequantize()
        return self.model

    def save_adapter(self, folder: str | os.PathLike[str], rank: int | None = None) -> ExportReport:
        """Write what was trained beside a quantised model as a LoRA adapter of PEFT's, at any time.

        ``peft.PeftModel.from_pretrained(base, folder)`` loads it onto the base, with the modules
        trained in full; of several processes, one calls it. Needs safetensors.

        Args:
            folder: Where to.
            rank: A lower rank to cut it to, by SVD; None writes all of it.

        Returns:
            Its ranks, its size, and what cutting it to a lower rank has lost.

        Raises:
            RuntimeError: If the model is not quantised, or nothing was trained.
        """
        self.boosting.complete()
        return self.boosting.outcome.save_adapter(folder, rank)

    def observe(self, loss: float | Tensor) -> None:
        """Show the step's loss to the policy given as ``kappa``; without one, do nothing.

        Call it before ``step()``, with the mean over accumulated batches; processes that train the
        model average it. A closure given to ``step()`` is observed by itself.
        """
        self.boosting.observe(loss)

    @property
    def converged(self) -> bool:
        """Whether the policy given as ``kappa`` says that further boosters are not worth it."""
        policy = self.boosting.course.policy
        return policy is not None and policy.converged

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the model's own: tensors and plain types only.

        After ``finalize()`` the run that resumes begins with the next booster.

        Raises:
            RuntimeError: If getters of ``torch.distributed.checkpoint`` ask, which would drop the
                booster; or if the weights were exchanged meanwhile.
        """
        self._about_to_save()
        return self._saved(save(self.boosting, self._wrapped))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state saved beside the model's; load the model's first.

        The model may hold the weights of its ``state_dict()``, where a pending booster is folded
        in, or still the frozen ones of the moment of saving.

        Raises:
            TypeError: If it is no mapping.
            ValueError: If the state is of another optimizer, model or configuration, or damaged.
            RuntimeError: If it does not belong to the model's present weights, or after
                ``finalize()``. Whatever is raised, nothing is changed.
        """
        self.boosting.require_attached("load_state_dict()")
        resume(self.boosting, self._wrapped, self._about_to_load(state_dict))
        self._loaded()

    def __getstate__(self) -> dict[str, Any]:
        self.boosting.complete()
        return super().__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> BoostedLowRankOptimizer:
        """Copy it with its model, the booster going on in both."""
        twin: BoostedLowRankOptimizer = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin.boosting.follow(self.boosting)
        return twin

    def _train(self, closure: Callable[[], float] | None) -> float | None:
        """Take a step of the base on gradients that were looked at."""
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
        if not self.boosting.prepare_gradients(others):
            raise _Skipped(loss)


_TRAINED_NOTHING = (
    "the last booster was merged only now, as an earlier step() or merge() could not do it: the "
    "gradients were its own, and this step trained nothing"
)


class _Skipped(Exception):
    """A step was skipped for a gradient that is not finite."""

    def __init__(self, loss: float | None) -> None:
        super().__init__()
        self.loss = loss
