"""From an existing LoRA script

    python examples/tutorials/from_lora.py

The same run twice: with PEFT's LoRA, and with boosters in its place. What goes is the adapter around the model; what
comes is one line, with PEFT's own words for what is adapted. Model and data are those of [the plain
loop](plain-loop.md): `fresh()` loads the model, `encode()` makes a batch.
"""

# %%
import random

import torch
from docstrings import encode, fresh, rows
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from torch.optim import AdamW, Optimizer

from torch_xgb import BoostedLowRankOptimizer

train, held_out = rows()


def trained(model: nn.Module, optimizer: Optimizer) -> str:
    """Train for 24 steps and say how it went; both methods go through this loop."""
    for step in range(24):
        loss = model(**encode(random.Random(step).sample(train, 8))).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        batch = encode(held_out)
        right = int((model.eval()(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return f"loss {loss.item():.3f}, {right} of {len(held_out)} right"


# %% [markdown]
# ## Before: LoRA

# %%
config = LoraConfig(
    task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"]
)
adapted = get_peft_model(fresh(), config).train()
optimizer: Optimizer = AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-3)
print(f"LoRA:     {trained(adapted, optimizer)}")
model = adapted.merge_and_unload()

# %% [markdown]
# ## After: boosters
#
# `target_modules`, `exclude_modules`, `modules_to_save`, `lora_alpha` and `lora_dropout` mean what they mean to PEFT;
# the task head is found and trained in full, as PEFT does. `kappa` is new: steps until a pair is merged. With
# `kappa=None` and every block drawn it is LoRA itself, which is a way to check the change before the method.

# %%
model = fresh().train()
optimizer = BoostedLowRankOptimizer(
    AdamW,
    model,
    r=8,
    lora_alpha=16,
    target_modules=["query", "value"],
    kappa=8,
    carry=0.97,
    layers_per_booster=None,
    lr=1e-3,
)
print(f"boosters: {trained(model, optimizer)}")
model = optimizer.finalize()

# %% [markdown]
# What is saved differs: LoRA saves an adapter, boosters a plain model. For an adapter of what boosters learned, keep a
# [ledger](ledger.md). More pairs of before and after, for ReLoRA, GaLore and others, are in [coming from
# elsewhere](../how-to/coming-from.md). One seed and 20 rows order nothing: measured scores are in
# [results](../results/index.md).
