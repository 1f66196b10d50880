"""The ledger: stop early, roll back, export an adapter

    python examples/tutorials/ledger.py

With `record=` every booster is kept on disk. A score per booster says when to stop; the weights of after any booster
come back bit for bit; and the chain of boosters is a LoRA adapter of any rank for PEFT. Model and data are those of
[the plain loop](plain-loop.md): `fresh()` loads the model, `encode()` makes a batch. The extras `ledger` and `peft`
are needed.
"""

# %%
import random
from pathlib import Path

import torch
from docstrings import encode, fresh, rows
from peft import PeftModel
from torch import nn
from torch.optim import AdamW

from torch_xgb import BoostedLowRankOptimizer, Chain

train, held_out = rows()


def loss_of(model: nn.Module) -> float:
    """Evaluate on the held-out rows."""
    was = model.training
    with torch.no_grad():
        loss = model.eval()(**encode(held_out)).loss.item()
    model.train(was)
    return loss


# %% [markdown]
# ## Record and score
#
# A score is given right after a merge, when the model is what that booster made it. The higher the better, so of a
# loss its negative. `should_stop(3)` says that three scored boosters in a row brought nothing better. The rate is
# too high on purpose: there should be something to go back from.

# %%
model = fresh().train()
optimizer = BoostedLowRankOptimizer(AdamW, model, r=2, kappa=4, lr=8e-3, record="run")
chain = optimizer.chain
assert chain is not None
optimizer.on_merge(lambda report: chain.score(report.booster_index, -loss_of(model)))
for step in range(60):
    loss = model(**encode(random.Random(step).sample(train, 8))).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if chain.should_stop(3):
        break
model = optimizer.finalize()
print(f"stopped after {step + 1} steps and {len(chain)} boosters; the best is booster {chain.best}")
for t, score in chain.scores.items():
    print(f"booster {t}: loss {-score:.3f}")

# %% [markdown]
# ## Roll back
#
# The chain is a folder, which another process opens with `Chain.load`. Rolling back puts the original weights in and
# merges the boosters again up to the one asked for.

# %%
chain = Chain.load("run")
chain.rollback(model, to=chain.best)
print(f"rolled back: loss {loss_of(model):.3f}, recorded was {-chain.scores[chain.best]:.3f}")

# %% [markdown]
# ## Hand it to PEFT
#
# Boosters side by side are one LoRA pair. With `rank=None` the adapter is exact; with a number each weight gets the
# best approximation of that rank, and the report says what it lost.

# %%
logits = model.eval()(**encode(held_out)).logits
for rank in (None, 4):
    folder = f"adapter-{rank}"
    report = chain.to_peft(folder, rank, to=chain.best)
    again = PeftModel.from_pretrained(fresh(), folder).eval()
    off = (again(**encode(held_out)).logits - logits).abs().max().item()
    size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    print(
        f"rank {rank}: {size / 1e6:.1f} MB, lost {report.total_error:.1%}, logits off by {off:.1e}"
    )
    assert rank or off < 1e-3

# %% [markdown]
# More of it: [the ledger](../concepts/ledger.md), and [reading its plots](reading-plots.md).
