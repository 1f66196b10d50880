"""COLA and DiReFT: the family in one line each

    python examples/tutorials/cola_and_direft.py

The paper's boosters are one member of a family, and its relatives are settings: LoRA, COLA's chains with knots and a
falling rank, knots chosen from the loss, and DiReFT, which edits outputs instead of weights. Each trains the same
small network towards the same target here, so that all of them can be seen at work; the figures order nothing.
"""

# %%
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from torch_xgb import BoostedLowRankOptimizer, LossPlateau


def network() -> nn.Sequential:
    """Four blocks of the same kind: what repeats is found and drawn."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(4)])


torch.manual_seed(1)
x = torch.randn(256, 32)
y = torch.tanh(x @ torch.randn(32, 32) / 6)


def train(name: str, **settings: Any) -> None:
    """Train for at most 120 steps and say what became of it."""
    model, ranks = network(), []
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=1e-2, **settings)
    optimizer.on_merge(lambda report: ranks.append((report.steps, report.rank)))
    first = (model(x) - y).square().mean().item()
    for _ in range(120):
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.observe(loss)  # for knots from the loss; elsewhere it does nothing
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.converged:
            break
    optimizer.finalize()
    last = (model(x) - y).square().mean().item()
    shown = ", ".join(f"{steps}·r{r}" for steps, r in ranks[:5]) + (" …" if len(ranks) > 5 else "")
    print(
        f"{name:<10} loss {first:.3f} → {last:.3f}   {len(ranks):>2} boosters (steps·rank): {shown}"
    )


# %% [markdown]
# ## XGBLoRA and LoRA
#
# The paper's boosters: rank 1, eight steps each, on two of the four blocks. With one booster on every block, merged
# at the end, the same code is LoRA.

# %%
train("XGBLoRA", r=1, kappa=8, layers_per_booster=2)
train("LoRA", r=4, kappa=None, layers_per_booster=None)

# %% [markdown]
# ## COLA: knots, and a rank that steps down
#
# A sequence for `kappa` are knots in steps of the whole run; one for `r` has a rank for each booster, and the last
# goes on. `bias="targets"` trains biases beside the pairs and merges them too.

# %%
train("COLA", r=[8, 4, 2], kappa=(40, 80), layers_per_booster=None, bias="targets")

# %% [markdown]
# Knots may also come from the loss: a booster ends when its smoothed loss has stopped improving.

# %%
train(
    "plateau",
    r=4,
    kappa=LossPlateau(patience=4, min_steps=4, max_steps=32),
    layers_per_booster=None,
)

# %% [markdown]
# ## DiReFT: an edit of the output
#
# The drawn map's output y becomes y + s·B(A y + b), and what was learned is merged into weight and bias exactly. With
# ranks that fall, `rank_lr_exponent=-0.25` is the rate that its theory derives.

# %%
train("DiReFT", adapter="direft", r=4, kappa=None, layers_per_booster=None)
train(
    "its chain",
    adapter="direft",
    r=[8, 2],
    kappa=(60,),
    layers_per_booster=None,
    rank_lr_exponent=-0.25,
)

# %% [markdown]
# What they do on text, with scores: [the family](../results/parts.md#the-family). What each setting means:
# [the algorithm](../concepts/algorithm.md).
