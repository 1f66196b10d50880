"""accelerate and the Trainer with DeepSpeed underneath; run in each of several processes."""

import os
from typing import Any

import torch
from safetensors.torch import load_file
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from tiny import batches
from torch_xgb import BoostedLowRankOptimizer
from zero_runs import SETTINGS, Case, model, whole_weights

BERT = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=23,
    num_labels=3,
    hidden_dropout_prob=0,
    attention_probs_dropout_prob=0,
)
BOOSTED: dict[str, Any] = {"r": 1, "kappa": 3, "layers_per_booster": 2, "lr": 1e-2, "eps": 1e-4}


def accelerated(stage: int, json: bool, folder: str) -> dict[str, Any]:
    """An accelerate loop that saves in the middle, goes on, loads, and goes on again."""
    import torch_xgb.integrations.deepspeed  # noqa: F401
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DeepSpeedPlugin, DummyOptim

    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(cpu=True)  # with Accelerator(cpu=True), accelerate ignores the plugin
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage},
    }
    if json:
        config["optimizer"] = {"type": "BoostedLowRank", "params": {"base": "AdamW", **SETTINGS}}
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config), gradient_accumulation_steps=2
    )
    net: Any = model(Case(stage))
    optimizer: Any = (
        DummyOptim(net.parameters()) if json else BoostedLowRankOptimizer(AdamW, net, **SETTINGS)
    )
    samples = [pair for x, y in batches(16, torch.float32) for pair in zip(x, y, strict=True)]
    net, optimizer, loader = accelerator.prepare(net, optimizer, DataLoader(samples, batch_size=2))
    losses, norms, again = [], [], []
    given = [batch for batch in loader]

    def train(part: list[Any], losses: list[float]) -> None:
        for x, y in part:
            with accelerator.accumulate(net):
                loss = cross_entropy(net(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(float(accelerator.clip_grad_norm_(net.parameters(), 0.5)))
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(accelerator.gather(loss.detach()).mean()))

    train(given[:8], losses)
    accelerator.save_state(folder)
    train(given[8:], losses)
    weights = whole_weights(net)
    if stage < 3:  # under ZeRO-3 DeepSpeed wants a new engine to load into
        accelerator.load_state(folder)
        train(given[8:], again)
    exported = accelerator.get_state_dict(net) if stage < 3 else None
    net.destroy()
    AcceleratorState._reset_state(True)
    return {"losses": losses, "again": again, "norms": norms, "weights": weights, "x": exported}


def trained(stage: int | None, json: bool, folder: str, resume: str | None = None) -> Any:
    """A run of the Trainer, under DeepSpeed or, with None as the stage, alone."""
    from torch_xgb.integrations.transformers import BoostedFactory, BoostingCallback

    config: dict[str, Any] | None = None
    if stage is not None:
        import torch_xgb.integrations.deepspeed  # noqa: F401

        config = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {
                "stage": stage,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
        }
        if json:
            params = {"base": "AdamW", **BOOSTED, "lr": "auto", "eps": "auto"}
            config["optimizer"] = {"type": "BoostedLowRank", "params": params}
    torch.manual_seed(0)
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=8 if stage is None else 4,
        max_steps=10,
        learning_rate=1e-2,
        adam_epsilon=1e-4,
        weight_decay=0.01,
        # The Trainer would multiply the loss by the number of processes, for models whose loss is
        # divided by the tokens of all of them; this one's is a mean of its own.
        average_tokens_across_devices=False,
        save_strategy="steps" if resume is None and stage is not None else "no",
        save_steps=5,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        deepspeed=config,
    )
    trainer = Trainer(
        BertForSequenceClassification(BERT),
        arguments,
        train_dataset=_examples(),
        optimizer_cls_and_kwargs=None if json else (BoostedFactory, BOOSTED),
    )
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train(resume_from_checkpoint=resume)
    saved = f"{folder}/saved"
    trainer.save_model(saved)
    if stage is not None:
        distributed.barrier()
    # Not by from_pretrained: under ZeRO-3 transformers would share the weights out again.
    weights = load_file(f"{saved}/model.safetensors")
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": [entry["loss"] for entry in logs],
        "norms": [float(entry["grad_norm"]) for entry in logs],
        "boosters": [e["booster/index"] for e in trainer.state.log_history if "booster/index" in e],
        "weights": weights,
    }


def _examples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 60, (8,), generator=generator),
            "labels": torch.randint(0, 3, (), generator=generator),
        }
        for _ in range(80)
    ]


def frameworks(folder: str) -> dict[str, Any]:
    """Every route, in the same processes."""
    found = {
        "accelerate 2": accelerated(2, False, f"{folder}/a2"),
        "accelerate 3, JSON": accelerated(3, True, f"{folder}/a3"),
        "Trainer 3": trained(3, False, f"{folder}/t3"),
        "Trainer 2, JSON": trained(2, True, f"{folder}/t2"),
    }
    found["Trainer 3, resumed"] = trained(
        3, False, f"{folder}/t3again", f"{folder}/t3/checkpoint-5"
    )
    return found
