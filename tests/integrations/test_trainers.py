"""Trainers that other frameworks build: a class or an instance, and axolotl's plugin."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn
from torch_xgb.integrations.trainers import boost_trainer
from torch_xgb.integrations.transformers import BoostedFactory, BoostingCallback
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from tests.integrations.test_trainer_routes import Rows, model
from torch_xgb import BoostedLowRankOptimizer


class FrameworkTrainer(Seq2SeqTrainer):
    """Like LLaMA-Factory's: it has arguments and an optimizer of its own."""

    def __init__(self, finetuning_args: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.finetuning_args = finetuning_args

    def create_optimizer(self, *args: Any) -> Any:
        raise AssertionError("the framework's own optimizer")


def arguments(kind: type, folder: Path) -> Any:
    return kind(
        str(folder), use_cpu=True, max_steps=4, per_device_train_batch_size=4, learning_rate=0.01,
        weight_decay=0.1, lr_scheduler_type="constant", logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True,
    )  # fmt: skip


def plain(folder: Path) -> Trainer:
    return Trainer(model(), arguments(TrainingArguments, folder), train_dataset=Rows())


def check(trainer: Trainer) -> None:
    """Train, and see the boosters in the log and the Trainer's rate in the optimizer."""
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, BoostedLowRankOptimizer)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    history = trainer.state.log_history
    assert [e["booster/index"] for e in history if "booster/index" in e][-1] == 1
    assert not any("boosters" in name for name, _ in trainer.model.named_modules())


def test_a_class_of_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrameworkTrainer, "create_optimizer", FrameworkTrainer.create_optimizer)
    boost_trainer(FrameworkTrainer, kappa=2, layers_per_booster=1)
    trainer = FrameworkTrainer(
        "full",
        model=model(),
        args=arguments(Seq2SeqTrainingArguments, tmp_path),
        train_dataset=Rows(),
        callbacks=[BoostingCallback()],
    )
    check(trainer)


class Loss(nn.Module):
    """As sentence-transformers' losses: around the model, with a classifier over pairs."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.model, self.classifier = body, nn.Linear(8, 3)


@pytest.mark.parametrize("several", [False, True])
def test_a_loss_with_weights_of_its_own_is_trained_with_its_model(
    tmp_path: Path, several: bool
) -> None:
    trainer = plain(tmp_path)
    trainer.optimizer_cls_and_kwargs = (BoostedFactory, {"kappa": 2})
    losses = [Loss(trainer.model) for _ in range(1 + several)]
    trainer.loss = dict(enumerate(losses)) if several else losses[0]
    optimizer = trainer.create_optimizer()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in trained for loss in losses for p in loss.classifier.parameters())
    optimizer.finalize()


def test_what_is_no_trainer_or_too_late_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be a Trainer or a subclass of it, got type"):
        boost_trainer(dict)  # type: ignore[arg-type]
    trainer = plain(tmp_path)
    trainer.create_optimizer()
    with pytest.raises(RuntimeError, match="has its optimizer already, AdamW"):
        boost_trainer(trainer)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin beside a module with the one class of axolotl's that it needs."""
    pytest.importorskip("pydantic")
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "torch_xgb.integrations.axolotl", raising=False)
    module = import_module("torch_xgb.integrations.axolotl")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.BoostedPlugin()


def test_the_axolotl_plugin_trains(tmp_path: Path, plugin: Any) -> None:
    module, name = plugin.get_input_args().rsplit(".", 1)
    schema = getattr(import_module(module), name)
    cfg = schema(boosted_low_rank={"kappa": 2, "layers_per_booster": 1}).model_dump()
    trainer = plain(tmp_path)
    for callback in plugin.add_callbacks_post_trainer(cfg, trainer):
        trainer.add_callback(callback)
    plugin.post_trainer_create(cfg, trainer)
    check(trainer)
    built = plugin.create_optimizer({}, plain(tmp_path))
    assert isinstance(built, BoostedLowRankOptimizer)


def test_the_axolotl_plugin_refuses_an_adapter(tmp_path: Path, plugin: Any) -> None:
    with pytest.raises(ValueError, match="adapter: qlora and boosted_low_rank exclude"):
        plugin.post_trainer_create({"adapter": "qlora"}, plain(tmp_path))
