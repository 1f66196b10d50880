"""Frameworks that build a Trainer themselves: TRL's, LLaMA-Factory's, axolotl's, one's own.

Where ``optimizer_cls_and_kwargs`` cannot be given to the constructor, ``boost_trainer`` makes a
Trainer, or every Trainer of a class, build the optimizer.

Example:
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp

    boost_trainer(CustomSeq2SeqTrainer, r=1, kappa=8)
    run_exp(callbacks=[BoostingCallback()])
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from .transformers import built, drop_finalized

__all__ = ["boost_trainer", "build_optimizer"]


def boost_trainer(trainer: Trainer | type[Trainer], **settings: Any) -> None:
    """Make a Trainer, or all of a class, train with a BoostedLowRankOptimizer.

    Call it before ``train()``; on a class, before LLaMA-Factory or the like makes one of it. An
    optimizer that the Trainer was given is used as it is.

    Args:
        trainer: A Trainer or a subclass of Trainer.
        **settings: For ``build_optimizer``.

    Raises:
        TypeError: If it is neither.
        RuntimeError: If the Trainer has an optimizer already.
    """
    if isinstance(trainer, type) and issubclass(trainer, Trainer):

        def of_any(self: Trainer, model: nn.Module | None = None) -> Optimizer:
            return _create(self, model, settings)

        setattr(trainer, "create_optimizer", of_any)  # noqa: B010
        return
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"trainer must be a Trainer or a subclass of it, got {type(trainer).__name__}"
        )
    if trainer.optimizer is not None:
        raise RuntimeError(
            f"the Trainer has its optimizer already, {type(trainer.optimizer).__name__}: call "
            "boost_trainer before train(), and give the Trainer no optimizers="
        )
    own = trainer

    def of_one(model: nn.Module | None = None) -> Optimizer:
        return _create(own, model, settings)

    setattr(trainer, "create_optimizer", of_one)  # noqa: B010


def build_optimizer(trainer: Trainer, model: nn.Module | None = None, **settings: Any) -> Optimizer:
    """Build the optimizer for a Trainer, with its learning rate and weight decay.

    Args:
        trainer: The Trainer.
        model: What to train; the Trainer's model by default.
        **settings: For BoostedFactory: BoostedLowRankOptimizer's, ``base``, and the base's. ``lr``
            and ``weight_decay`` are those of the Trainer's arguments if not given.

    Raises:
        ValueError: If the Trainer has no model.
    """
    trained = trainer.model if model is None else model
    if trained is None:
        raise ValueError("the Trainer has no model yet: build the optimizer after its model_init")
    return built(trainer, trained, **settings)


def _create(trainer: Trainer, model: nn.Module | None, settings: dict[str, Any]) -> Optimizer:
    drop_finalized(trainer)
    if trainer.optimizer is None:
        trainer.optimizer = build_optimizer(trainer, model, **settings)
    return trainer.optimizer
