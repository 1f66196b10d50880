"""The Trainer in several processes: what one does, through accumulation, clipping, checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import distributed
from torch.utils.data import Dataset
from torch_xgb.integrations.transformers import BoostedFactory, BoostingCallback
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from processes import run

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {"kappa": 2, "layers_per_booster": 1, "lr": 0.05, "lora_alpha": 4}


class Rows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, i: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(i)
        ids = torch.randint(5, 40, (8,), generator=generator)
        return {"input_ids": ids, "labels": int(ids.sum()) % 2}


def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(
        vocab_size=40,
        num_hidden_layers=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    return BertForSequenceClassification(config)


def _train(folder: str, resume: bool) -> dict[str, Any]:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    args = TrainingArguments(
        folder,
        use_cpu=True,
        ddp_backend="gloo",
        average_tokens_across_devices=False,  # the Trainer would scale a mean as if it were a sum
        per_device_train_batch_size=4 // distributed.get_world_size(),
        gradient_accumulation_steps=2,
        max_steps=6,
        save_steps=3,
        logging_steps=1,
        max_grad_norm=0.5,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        lr_scheduler_type="linear",
        warmup_steps=0,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(
        model(),
        args,
        train_dataset=Rows(),
        eval_dataset=Rows(),
        optimizer_cls_and_kwargs=(BoostedFactory, dict(SETTINGS)),
    )
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-3" if resume else None)
    history = trainer.state.log_history
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "norms": [float(entry["grad_norm"]) for entry in history if "grad_norm" in entry],
        "boosters": [entry["booster/index"] for entry in history if "booster/index" in entry],
        "evals": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "weights": {n: p.detach().clone() for n, p in trainer.model.state_dict().items()},
    }


def _both(folder: str) -> list[dict[str, Any]]:
    return [_train(folder, False), _train(folder, True)]


def test_ddp_does_what_one_process_does(tmp_path: Path) -> None:
    ((alone, again),) = run(_both, 1, str(tmp_path / "one"))
    assert max(alone["boosters"]) == 2 and len(alone["losses"]) == 6
    for straight, resumed in run(_both, 2, str(tmp_path / "two")):
        if not straight["losses"]:
            continue  # the Trainer logs on the first process
        assert straight["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert straight["norms"] == pytest.approx(alone["norms"], abs=1e-5)
        assert straight["evals"] == pytest.approx(alone["evals"], abs=1e-5)
        assert resumed["losses"] == pytest.approx(straight["losses"], abs=1e-6)
        assert resumed["evals"] == pytest.approx(straight["evals"], abs=1e-6)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(straight["weights"][name], weight, atol=1e-5, rtol=0)
            torch.testing.assert_close(resumed["weights"][name], weight, atol=1e-5, rtol=0)
