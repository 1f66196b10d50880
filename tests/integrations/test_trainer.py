"""The Hugging Face Trainer, on one process."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch_xgb.integrations.transformers import BoostedFactory, BoostingCallback
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bases import Averaging
from torch_xgb import BoostedLowRankOptimizer, Chain, LossPlateau

# Its name changed in the course of transformers 5.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if hasattr(TrainingArguments, name)
)
SETTINGS: dict[str, Any] = {"r": 1, "kappa": 3, "layers_per_booster": 2, "lr": 1e-2}


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return BertForSequenceClassification(config)


def examples(count: int = 32) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 60, (8,), generator=generator),
            "labels": torch.randint(0, 3, (), generator=generator),
        }
        for _ in range(count)
    ]


def quiet(folder: Path, **arguments: Any) -> TrainingArguments:
    """On a CPU, without bars and reports."""
    return TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **arguments
    )


def make(folder: Path, settings: dict[str, Any] | None = None, **arguments: Any) -> Trainer:
    arguments = {"max_steps": 10, "logging_steps": 5, "save_strategy": "no"} | arguments
    return Trainer(
        classifier(),
        quiet(folder, **{"per_device_train_batch_size": 4, **arguments}),
        train_dataset=examples(),
        eval_dataset=examples(8),
        optimizer_cls_and_kwargs=(BoostedFactory, {**SETTINGS, **(settings or {})}),
    )


def test_factory_and_callback(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.add_callback(BoostingCallback(trainer))
    seen: list[dict[str, Any]] = []

    class Reporter(TrainerCallback):
        def on_log(self, *args: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            seen.append(dict(logs))

    trainer.callback_handler.callbacks.insert(0, Reporter())
    keys = list(trainer.model.state_dict())
    trainer.train()
    logged = [logs for logs in seen if "booster/index" in logs]
    assert [logs["booster/index"] for logs in logged] == [0, 2]
    folded = re.compile(r"bert\.encoder\.layer\.\{\d,\d\}")
    assert all(folded.fullmatch(logs["booster/layers"]) for logs in logged)
    assert all(logs["booster/update_norm"] > 0 for logs in logged)
    assert list(trainer.model.state_dict()) == keys
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_the_factory_alone_logs_and_takes_the_trainers_rates(tmp_path: Path) -> None:
    alone = {"learning_rate": 0.003, "weight_decay": 0.02, "lr_scheduler_type": "constant"}
    trainer = make(tmp_path, logging_steps=1, **alone)
    settings = trainer.optimizer_cls_and_kwargs[1]
    del settings["lr"]
    trainer.train()
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.003, 0.02)
    history = trainer.state.log_history
    assert [e["booster/index"] for e in history if "booster/index" in e] == [0, 1, 2]
    said = make(tmp_path, settings={"lr": 0.01}, **alone)
    said.train()
    group = said.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.02)


def test_train_twice(tmp_path: Path) -> None:
    """Each builds an optimizer of its own: the first run left the model plain."""
    trainer = make(tmp_path)
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train()
    before = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    trainer.train()
    changed = [n for n, v in trainer.model.state_dict().items() if not torch.equal(v, before[n])]
    assert any("query" in name for name in changed)
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_resume_is_bitwise(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", save_strategy="steps", save_steps=5)
    whole.add_callback(BoostingCallback(whole))
    whole.train()
    resumed = make(tmp_path / "resumed")
    resumed.add_callback(BoostingCallback(resumed))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_saved_model_computes_what_the_trained_one_does(tmp_path: Path) -> None:
    """In the middle of a booster, and without the callback's finalize."""
    trainer = make(tmp_path, settings={"kappa": 7})
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids = examples(1)[0]["input_ids"][None]
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        assert torch.allclose(saved(ids).logits, expected, rtol=1e-5, atol=1e-6)


def test_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    trainer = make(
        tmp_path,
        save_strategy="steps",
        save_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        load_best_model_at_end=True,
    )
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)


def test_the_best_model_s_score_is_not_given_to_the_last_booster(tmp_path: Path) -> None:
    trainer = make(
        tmp_path,
        {"record": True},
        max_steps=9,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        greater_is_better=True,  # of a loss that falls: the first evaluation
    )
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train()
    scores = [-log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    best = trainer.evaluate()["eval_loss"]
    assert best == pytest.approx(trainer.state.best_metric, rel=1e-5) and -best < min(scores[1:])
    assert list(trainer.optimizer.optimizer.chain.scores.values()) == scores


def test_ready_made_optimizer_and_accumulation(tmp_path: Path) -> None:
    model = classifier()
    optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS)
    arguments = quiet(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=7,
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=examples(), optimizers=(optimizer, None))
    trainer.add_callback(BoostingCallback(trainer, finalize=False))
    trainer.train()
    assert (optimizer.booster_index, optimizer.booster_step) == (2, 1)


def test_knots_from_the_loss(tmp_path: Path) -> None:
    policy = LossPlateau(patience=1, min_steps=2, max_steps=2, stop_after=1, min_improvement=10.0)
    trainer = make(tmp_path, settings={"kappa": policy})
    trainer.add_callback(BoostingCallback(trainer, finalize=False))
    trainer.train()
    # Booster 0 sets the best loss, booster 1 does not improve on it tenfold: the run has converged.
    assert trainer.state.global_step == 4


def test_a_policy_is_shown_the_loss_where_backward_steps() -> None:
    """As DeepSpeed's does, before the Trainer tells of the step."""
    model, (row, *_) = classifier(), examples(1)
    optimizer = BoostedLowRankOptimizer(AdamW, model, **{**SETTINGS, "kappa": LossPlateau()})
    callback, control = BoostingCallback(), TrainerControl()
    told = cast(TrainingArguments, None), TrainerState(), control
    callback.on_train_begin(*told, optimizer=optimizer)
    callback.on_step_begin(*told, optimizer=optimizer)
    model(row["input_ids"][None], labels=row["labels"][None]).loss.backward()
    optimizer.step()
    assert optimizer.booster_step == 1
    callback.on_train_end(*told, optimizer=optimizer)


class Seen(LossPlateau):
    """Remembers what it was shown."""

    losses: list[float] = []

    def observe(self, loss: float) -> None:
        Seen.losses.append(loss)
        super().observe(loss)


def test_a_step_of_fewer_batches_is_no_jump_of_the_loss(tmp_path: Path) -> None:
    """A causal model's losses are shares of all tokens of a step, of two or of five batches."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, **sizes))
    arguments = quiet(
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=5,
        max_steps=6,
        save_strategy="no",
    )
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in examples(12)]
    factory = BoostedFactory, {**SETTINGS, "kappa": Seen(), "lr": 1e-6}
    trainer = Trainer(model, arguments, train_dataset=rows, optimizer_cls_and_kwargs=factory)
    trainer.add_callback(BoostingCallback(trainer))
    Seen.losses.clear()
    trainer.train()
    assert len(Seen.losses) == 6 and max(Seen.losses) < 1.2 * min(Seen.losses)


def test_a_schedule_free_base_ends_with_its_averages(tmp_path: Path) -> None:
    trainer = make(tmp_path, settings={"base": Averaging, "lr": 0.5, "kappa": 100})
    trainer.add_callback(BoostingCallback(trainer, finalize=False))
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    in_training = trainer.model.state_dict()
    optimizer.eval()
    averages = trainer.model.state_dict()
    again = make(tmp_path, settings={"base": Averaging, "lr": 0.5, "kappa": 100})
    again.add_callback(BoostingCallback(again))
    again.train()
    name = next(iter(optimizer.active_factors)) + ".weight"
    assert not torch.equal(in_training[name], averages[name])
    torch.testing.assert_close(again.model.state_dict()[name], averages[name])


def test_early_stopping_on_the_ledger(tmp_path: Path) -> None:
    trainer = make(
        tmp_path,
        settings={"record": True, "kappa": 1, "lr": 1e-8},
        max_steps=12,
        eval_strategy="steps",
        eval_steps=2,
    )
    callback = BoostingCallback(trainer, early_stopping_rounds=2, metric="eval_loss")
    trainer.add_callback(callback)
    trainer.train()
    chain = trainer.optimizer.optimizer.chain
    assert chain is not None
    assert len(chain.scores) >= 3
    assert trainer.state.global_step < 12 or chain.best >= 11 - 2 * 2


def evaluated(callback: BoostingCallback, optimizer: Any, loss: float) -> bool:
    """Whether the callback stops the run after an evaluation with this loss."""
    control, none = TrainerControl(), cast(Any, None)
    args = cast(Any, SimpleNamespace(load_best_model_at_end=False))
    callback.on_evaluate(args, none, control, {"eval_loss": loss}, optimizer=optimizer)
    return control.should_training_stop


def boosted_steps(count: int, **settings: Any) -> Iterator[BoostedLowRankOptimizer]:
    """An optimizer after each of some steps."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4)) for _ in range(3)])
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=1e-3, record=True, **settings)
    for _ in range(count):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield optimizer


def test_early_stopping_counts_evaluations_and_not_boosters() -> None:
    callback = BoostingCallback(early_stopping_rounds=3)
    losses = iter([2.0, 1.0, float("nan"), 1.0, 1.5])
    stopped = [evaluated(callback, o, next(losses)) for o in boosted_steps(5, kappa=20)]
    assert stopped == [False, False, False, False, True]
    callback = BoostingCallback(early_stopping_rounds=2)
    boosters = boosted_steps(9, kappa=1)  # many boosters to an evaluation
    thirds = (o for i, o in enumerate(boosters) if i % 3 == 2)
    assert [evaluated(callback, o, 1.0) for o in thirds] == [False, False, True]


def test_a_booster_is_scored_by_what_was_evaluated_at_its_end() -> None:
    callback = BoostingCallback()
    optimizer = None
    for i, optimizer in enumerate(boosted_steps(8, kappa=3)):
        evaluated(callback, optimizer, float(i))
    assert optimizer is not None and optimizer.chain is not None
    assert dict(optimizer.chain.scores) == {0: -2.0, 1: -5.0}
    optimizer.finalize()
    evaluated(callback, optimizer, 9.0)
    assert dict(optimizer.chain.scores) == {0: -2.0, 1: -5.0, 2: -9.0}


def test_a_resumed_run_remembers_its_evaluations() -> None:
    callback = BoostingCallback(early_stopping_rounds=2)
    state = TrainerState(log_history=[{"eval_loss": 1.0}, {"loss": 3.0}, {"eval_loss": 2.0}])
    (optimizer,) = boosted_steps(1)
    callback.on_train_begin(cast(Any, None), state, TrainerControl(), optimizer=optimizer)
    assert evaluated(callback, optimizer, 2.0)


def test_early_stopping_needs_a_ledger(tmp_path: Path) -> None:
    trainer = make(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.add_callback(BoostingCallback(trainer, early_stopping_rounds=2))
    with pytest.raises(RuntimeError, match="record="):
        trainer.train()


def test_evaluation_before_training(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.add_callback(BoostingCallback(trainer))
    assert "eval_loss" in trainer.evaluate()


def test_another_optimizer_is_an_error(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.optimizer_cls_and_kwargs = (AdamW, {"lr": 1e-3})
    trainer.add_callback(BoostingCallback(trainer))
    with pytest.raises(RuntimeError, match="BoostedFactory"):
        trainer.train()


@pytest.mark.parametrize("base", ["Adamw", "nn", "Optimizer_"])
def test_base_by_a_name_that_is_none(base: str) -> None:
    with pytest.raises(ValueError, match=base):
        BoostedFactory()(nn.Sequential(nn.Linear(2, 2)), base=base, lr=0.1)


def test_base_by_name() -> None:
    optimizer = BoostedFactory()(nn.Sequential(nn.Linear(2, 2)), base="SGD", lr=0.1)
    assert type(optimizer.base) is torch.optim.SGD


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_trainers_checkpointing_stops_at_the_lowest_drawn_block(
    tmp_path: Path, use_reentrant: bool
) -> None:
    """With reentrance the embeddings' gradients are needed: all blocks are computed again."""
    ends, calls = [], []
    for checkpointed in (False, True):
        arguments: dict[str, Any] = {CHECKPOINTING: checkpointed}
        arguments[f"{CHECKPOINTING}_kwargs"] = {"use_reentrant": use_reentrant}
        trainer = make(
            tmp_path,
            settings={"layer_sampler": lambda *_: [1, 2]},
            max_steps=4,
            **(arguments if checkpointed else {}),
        )
        trainer.add_callback(BoostingCallback(trainer))
        lowest = trainer.model.bert.encoder.layer[0].attention.self.query
        lowest.register_forward_hook(lambda *_, c=checkpointed: calls.append(c))
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert calls.count(False) == 4 and calls.count(True) == (8 if use_reentrant else 4)
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)


def test_input_gradients_of_an_optimizer_given_to_the_trainer(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=2, **{CHECKPOINTING: True})
    trainer.optimizer = BoostedLowRankOptimizer(AdamW, trainer.model, **SETTINGS)
    trainer.optimizer_cls_and_kwargs = None
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train()
    assert not trainer.model.get_input_embeddings()._forward_hooks


def test_a_run_with_a_ledger_is_started_again_and_resumed(tmp_path: Path) -> None:
    """The Trainer has accelerate load an optimizer's own fresh state back into it."""

    def trainer(record: object, steps: int) -> Trainer:
        return make(
            tmp_path,
            settings={"record": record, "kappa": 2},
            max_steps=steps,
            save_strategy="steps",
            save_steps=5,
            lr_scheduler_type="constant",
        )

    whole = trainer(None, 10)
    whole.train()
    first = trainer(tmp_path / "run", 8)
    first.train()
    first.optimizer.optimizer.finalize()
    again = trainer(tmp_path / "run", 10)
    with pytest.raises(RuntimeError, match="holds 4 boosters.*choose another path"):
        again.train()
    assert len(Chain.load(tmp_path / "run")) == 4
    resumed = trainer(tmp_path / "run", 10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    models = [one.optimizer.optimizer.finalize() for one in (whole, resumed)]
    wanted, got = (model.state_dict() for model in models)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    chain = Chain.load(tmp_path / "run")
    assert len(chain) == 5
    rolled = chain.rollback(classifier(), 4).state_dict()
    assert all(torch.equal(rolled[n], got[n]) for n in [*chain.header.weights, *chain.header.saved])


def test_a_second_run_of_a_given_optimizer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model, args = classifier(), make(tmp_path).args
    optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS)
    trainer = Trainer(model, args, train_dataset=examples(), optimizers=(optimizer, None))
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train()
    output = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match=r"trainer\.optimizer = trainer\.lr_scheduler = None"):
        trainer.train()
    assert all(torch.equal(p, output[n]) for n, p in model.named_parameters())
