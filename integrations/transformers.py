"""The Hugging Face Trainer: a factory it calls with the model, and a callback.

Example:
    trainer = Trainer(
        model, args, train_dataset=data,
        optimizer_cls_and_kwargs=(BoostedFactory, {"r": 1, "kappa": 8, "lr": 1e-3}),
    )
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train()
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import Trainer, TrainingArguments

from torch_xgb import BoostedLowRankOptimizer

from .callback import BoostingCallback, Logs
from .checkpointing import spare_input_gradients
from .unwrapping import find_boosted

__all__ = ["BoostedFactory", "BoostingCallback", "spare_input_gradients"]


class BoostedFactory:
    """Builds the optimizer where the Trainer does, from the Trainer's own model.

    The Trainer's ``learning_rate`` and ``weight_decay`` are the base's, unless ``lr`` and
    ``weight_decay`` are among the keyword arguments; boosters are logged without a
    ``BoostingCallback``, which is for early stopping and to have the model plain at the end.
    """

    def __call__(
        self,
        model: nn.Module,
        base: str | Callable[..., Optimizer] = AdamW,
        **kwargs: Any,
    ) -> BoostedLowRankOptimizer:
        """Return a BoostedLowRankOptimizer.

        Args:
            model: The Trainer's model.
            base: The base optimizer, or the name of one of ``torch.optim``.
            **kwargs: For BoostedLowRankOptimizer and the base.

        Raises:
            ValueError: If ``torch.optim`` has no optimizer of that name.
        """
        # The Trainer tells nobody that it is the one who asks, but on the stack.
        return built(sys._getframe(1).f_locals.get("self"), model, base, **kwargs)


def built(
    trainer: object, model: nn.Module, base: str | Callable[..., Optimizer] = AdamW, **kwargs: Any
) -> BoostedLowRankOptimizer:
    """Build an optimizer for a Trainer, if it is one: by its arguments, and logging to it.

    Args:
        trainer: A Trainer, or anything else.
        model: What to train.
        base: As of ``BoostedFactory``.
        **kwargs: For BoostedLowRankOptimizer and the base.

    Raises:
        ValueError: If ``torch.optim`` has no optimizer of that name.
    """
    if isinstance(base, str):
        found = getattr(torch.optim, base, None)
        if not (isinstance(found, type) and issubclass(found, Optimizer)):
            raise ValueError(f"base must name an optimizer of torch.optim, got {base!r}")
        base = found
    said = _said(trainer.args, base) if isinstance(trainer, Trainer) else {}
    optimizer = BoostedLowRankOptimizer(base, _with_loss(trainer, model), **said | kwargs)
    spare_input_gradients(model)
    if isinstance(trainer, Trainer):
        _log_from_now(trainer)
        _build_anew(trainer)
    return optimizer


def _with_loss(trainer: object, model: nn.Module) -> nn.Module:
    """Return the model, or the losses around it that have weights of their own.

    sentence-transformers' trainers keep them in ``loss``: one, or one for each dataset. Its own
    optimizers train what is in them.
    """
    kept = getattr(trainer, "loss", None)
    losses = kept.values() if isinstance(kept, dict) else (kept,)
    inside = set(model.parameters())
    around = [
        loss
        for loss in losses
        if isinstance(loss, nn.Module)
        and model in loss.modules()
        and not inside.issuperset(loss.parameters())
    ]
    if not around:
        return model
    return around[0] if len(around) == 1 else nn.ModuleList(around)


def _said(args: TrainingArguments, base: Callable[..., Optimizer]) -> dict[str, float]:
    """Return what a Trainer's arguments say to a base that knows the words."""
    said = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    words = inspect.signature(base).parameters
    any_word = any(word.kind is word.VAR_KEYWORD for word in words.values())
    return {name: value for name, value in said.items() if any_word or name in words}


def _log_from_now(trainer: Trainer) -> None:
    if not any(isinstance(c, BoostingCallback) for c in trainer.callback_handler.callbacks):
        trainer.add_callback(Logs(trainer, finalize=False))


def _build_anew(trainer: Trainer) -> None:
    """Have a second ``train()`` build a second optimizer, if the first has been finalized."""
    create = trainer.create_optimizer
    if "create_optimizer" in vars(trainer):
        return

    def anew(*args: Any) -> Optimizer:
        drop_finalized(trainer)
        return create(*args)

    setattr(trainer, "create_optimizer", anew)  # noqa: B010


def drop_finalized(trainer: Trainer) -> None:
    """Make room for a new optimizer where a Trainer keeps one that has left the model."""
    boosted = find_boosted(trainer.optimizer)
    if boosted is not None and not boosted.boosting.attached:
        trainer.optimizer = None
