"""Planning memory before training

    python examples/tutorials/planning_memory.py

`plan` says what a training step will need, from shapes alone: it runs the step on tensors without contents, so it
needs no weights, no GPU and no network, and takes seconds for a model of eight billion parameters. On the command
line it is `torch-xgb plan llama3-8b --length 2048 --card 24`.
"""

# %%
from torch_xgb import plan

# %% [markdown]
# ## Will it fit?
#
# LLaMA3-8B in bfloat16, one row of 1,024 tokens, a card of 24 GiB; a booster draws eight of 32 blocks.

# %%
asked = {"length": 1024, "card": 24}
print(plan("llama3-8b", **asked))

# %% [markdown]
# The residual is what is too much. In bfloat16 most of a small update would be rounded away at a merge; by default the
# rest is kept beside the weights, at two bytes each. Two settings do without: the residual in the host's memory, or
# rounding at random. What that costs is in [precision](../concepts/precision.md).

# %%
print(plan("llama3-8b", **asked, residual_device="cpu"))

# %% [markdown]
# ## Where it still does not fit
#
# `checkpointing=True` computes blocks again in backward, from the lowest drawn one up; with it four times the tokens
# fit the same card. `layers_per_booster` lowers the mean and seldom the worst draw, since the first block may be drawn;
# `layer_sampler="window"` does likewise. [Save memory](../how-to/memory.md) has the order to try things in.
#
# A model of your own goes in as a module, with `inputs=` for the keyword arguments of a call that returns its loss;
# a folder with a `config.json` goes in as its path. How near plans come to what is measured: within 2.5 % on twelve
# models and methods ([performance](../results/performance.md#a-plan-before-training)).
