"""Reading the plots of a run

    python examples/tutorials/reading_plots.py

A ledger can be drawn: `chain.plot("chain.png")`, or `torch-xgb plot run`. What the picture shows is best
learned from a run whose answer is known, so a small network of four blocks is trained towards itself with one block
changed.
"""

# %%
import copy

import torch
from torch import nn
from torch.optim import AdamW

from torch_xgb import BoostedLowRankOptimizer

torch.manual_seed(0)
teacher = nn.Sequential(*[nn.Sequential(nn.Linear(48, 48), nn.Tanh()) for _ in range(4)])
student = copy.deepcopy(teacher)
with torch.no_grad():  # block 2 of the teacher differs by a matrix of rank 3
    teacher[2][0].weight += 0.1 * torch.randn(48, 3) @ torch.randn(3, 48)
x = torch.randn(512, 48)
y = teacher(x).detach()

# %% [markdown]
# ## A run with a ledger and scores

# %%
optimizer = BoostedLowRankOptimizer(
    AdamW, student, r=1, kappa=16, layers_per_booster=2, lr=5e-3, record=True
)
chain = optimizer.chain
assert chain is not None


def loss_now() -> torch.Tensor:
    """How far the student is from the teacher."""
    return (student(x) - y).square().mean()


optimizer.on_merge(lambda report: chain.score(report.booster_index, -loss_now().item()))
for _ in range(16 * 24):
    loss_now().backward()
    optimizer.step()
    optimizer.zero_grad()
optimizer.finalize()
print(
    f"{len(chain)} boosters, loss {-chain.scores[0]:.4f} after the first, {-chain.scores[chain.best]:.4f} at best"
)

# %% [markdown]
# ## The picture

# %%
chain.plot("chain.png")

# %% [markdown]
# - **The map** has a row a block and a column a booster: how large each update was, and grey where a block was not
#   drawn. The first booster puts most into block 2, where teacher and student differ; what it could not reach, its
#   neighbours make up for. If one row is far darker than all others in a run of yours, a draw that favours it
#   (`layer_sampler=Weighted(...)`) may get there sooner.
# - **The update's norm** is that of each booster over all its blocks. It falls as there is less left to learn. A line
#   that does not fall by the end is a run that was ended early; one that jumps is a rate that is too high.
# - **The effective rank** is that of all updates so far, and what a chain is for: one update has rank 1, their sum has
#   more, here the teacher's 3. Where it stays at the rank of one booster, every booster learns the same direction
#   again, and a LoRA of that rank would have done.
# - **The scores** are those given by `chain.score`; without any the panel is left out. The best is what
#   `chain.rollback(model, to=chain.best)` goes back to.
#
# The figures behind the picture: `chain[t].update_norm`, `chain.delta(name)`, `chain.scores`.
