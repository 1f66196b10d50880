"""What the Hugging Face Trainer tells a callback, and what the boosting makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from torch_xgb import BoostedLowRankOptimizer, MergeReport

from .checkpointing import spare_input_gradients
from .unwrapping import find_boosted

__all__ = ["BoostingCallback", "Logs"]


class BoostingCallback(TrainerCallback):
    """Logs the boosting, shows the loss to a policy, stops early, and finalizes at the end.

    Logged, wherever the Trainer reports to: ``booster/index``, ``booster/layers`` and
    ``booster/update_norm`` (‖ΔW‖_F over all targets) of the last merged booster.

    Args:
        trainer: The Trainer; without it, the values only join the Trainer's own log records.
        early_stopping_rounds: Stop after so many evaluations in a row, wherever in a booster they
            fall, of which none was better than the best before them. Needs ``record=`` on the
            optimizer, so that there is a way back to the best booster.
        metric: The evaluation's metric. It scores the last merged booster in the ledger if it was
            evaluated right after that was merged; a few steps later the model holds a part of the
            next one too, and an evaluation of that is nobody's score. Let ``eval_steps`` be a
            multiple of kappa for a score at every evaluation.
        greater_is_better: Its direction.
        finalize: Whether to make the model plain at the end of training.
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        *,
        early_stopping_rounds: int | None = None,
        metric: str = "eval_loss",
        greater_is_better: bool = False,
        finalize: bool = True,
    ) -> None:
        self.trainer = trainer
        self.early_stopping_rounds = early_stopping_rounds
        self.metric = metric
        self.sign = 1 if greater_is_better else -1
        self.finalize = finalize
        self._evaluations: list[float] = []  # the higher, the better
        self._last: MergeReport | None = None
        self._losses: list[Tensor] = []
        self._most, self._mean = 0, torch.tensor(math.nan)
        self._handles: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to listen; of a run that is resumed, take up the evaluations it had.

        Raises:
            RuntimeError: If the Trainer does not use a BoostedLowRankOptimizer: it silently drops
                ``optimizers=`` under some backends. Or if it was finalized after an earlier run.
        """
        optimizer = _boosted(kwargs.get("optimizer"))
        if not optimizer.boosting.attached:
            raise RuntimeError(
                "the optimizer was finalized at the end of the last train(), and the model is "
                "plain: for another run, set trainer.optimizer = trainer.lr_scheduler = None, "
                "so that the Trainer builds a new optimizer, or make a new Trainer; to train on, "
                "give BoostingCallback(…, finalize=False) to the first"
            )
        logged = [] if state is None else [log.get(self.metric) for log in state.log_history]
        self._evaluations = [self.sign * value for value in logged if value is not None]
        spare_input_gradients(optimizer.model)
        self._stop()  # where a run is begun again, with smaller batches
        self._handles.append(optimizer.on_merge(self._remember))
        # DeepSpeed steps in backward(), before the Trainer tells of it.
        self._handles.append(optimizer.register_step_pre_hook(self._show))
        hook = optimizer.model.register_forward_hook(self._keep_loss)
        self._handles.append(hook)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the batches of a step that was not taken."""
        self._losses = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stop when the policy says that boosters no longer help."""
        if _boosted(kwargs["optimizer"]).converged:
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what is known of the last merged booster, once."""
        if self._last is None or logs is None or "booster/index" in logs or "loss" not in logs:
            return
        values = {
            "booster/index": self._last.booster_index,
            "booster/layers": _folded(self._last.layers),
            "booster/update_norm": sum(n**2 for n in self._last.update_norm.values()) ** 0.5,
        }
        self._last = None
        if self.trainer is not None:
            self.trainer.log(values)
        else:
            logs.update(values)
            state.log_history[-1].update(values)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        """Score the last merged booster, if it is what was evaluated; stop early if asked to.

        Raises:
            RuntimeError: If early stopping is asked for and the optimizer keeps no ledger.
            ValueError: If the evaluation has no such metric.
        """
        if kwargs.get("optimizer") is None:  # evaluated before any training
            return control
        optimizer, rounds = _boosted(kwargs["optimizer"]), self.early_stopping_rounds
        recorded = optimizer.boosting.settings.record is not None
        if not recorded and rounds is not None:
            raise RuntimeError("early_stopping_rounds needs a ledger: give the optimizer record=")
        if not recorded:
            return control
        if self.metric not in (metrics or {}):
            raise ValueError(f"no metric {self.metric!r} among {sorted(metrics or {})}")
        value = self.sign * (metrics or {})[self.metric]
        self._evaluations.append(value)
        chain = optimizer.chain  # None in all processes but the first
        between = optimizer.booster_step == 0
        if not optimizer.boosting.attached:  # else the weights are an earlier booster's
            between = not args.load_best_model_at_end
        if chain is not None and len(chain) and between and math.isfinite(value):
            chain.score(len(chain) - 1, value)
        if rounds is not None and _without_better(self._evaluations) >= rounds:
            control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop listening; make the model plain."""
        self._stop()
        if self.finalize:
            optimizer = _boosted(kwargs.get("optimizer"))
            if callable(averaged := getattr(optimizer, "eval", None)):
                averaged()  # of schedule-free bases, whose result is the averages
            optimizer.finalize()

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._losses, self._most = [], [], 0

    def _remember(self, report: MergeReport) -> None:
        self._last = report

    def _show(self, optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        """Show the mean loss of the accumulated batches to the policy, if there is one.

        An epoch's last step may be of fewer batches. Losses that are shares of all of a step's
        tokens are larger then, means of their own are not, and nothing tells which they are: the
        policy is shown the mean of the step before once more.
        """
        if self._losses:
            if len(self._losses) >= self._most:
                self._most, self._mean = len(self._losses), torch.stack(self._losses).mean()
            optimizer.observe(self._mean)
        self._losses = []

    def _keep_loss(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        loss = output.get("loss") if isinstance(output, dict) else None
        if module.training and isinstance(loss, Tensor):
            self._losses.append(loss.detach())


class Logs(BoostingCallback):
    """What a factory adds where nobody has added a callback: it logs, and changes nothing."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        """Score nothing."""
        return control


def _folded(layers: Sequence[str]) -> str:
    """Return blocks' names in a column's width: ``bert.encoder.layer.{0,3}``."""
    stems = {name.rpartition(".")[0] for name in layers}
    numbers = [name.rpartition(".")[2] for name in layers]
    if len(stems) != 1 or len(layers) == 1 or not all(n.isdecimal() for n in numbers):
        return " ".join(layers)
    stem = stems.pop()
    return f"{stem}{'.' if stem else ''}{{{','.join(sorted(numbers, key=int))}}}"


def _without_better(values: Sequence[float]) -> int:
    """Return how many values there are after the best one, the first of equals; NaN is none."""
    best = max((value for value in values if not math.isnan(value)), default=None)
    return len(values) if best is None else len(values) - 1 - values.index(best)


def _boosted(optimizer: object) -> BoostedLowRankOptimizer:
    if (found := find_boosted(optimizer)) is None:
        raise RuntimeError(
            f"the Trainer trains with {type(optimizer).__name__}, not with a "
            "BoostedLowRankOptimizer: optimizers=(…) is not honoured by every backend; pass "
            "optimizer_cls_and_kwargs=(BoostedFactory, {…}) instead"
        )
    return found
