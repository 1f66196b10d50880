"""A torchrun script that saves after every step; told to, its rank 1 is killed in the middle.

python killed.py FOLDER STEPS [STEP_OF_DEATH]
"""

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

warnings.simplefilter("ignore")
folder, steps, death = Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or [-1])[0])
distributed.init_process_group("gloo")
rank = distributed.get_rank()
model = stack(2)
optimizer = BoostedLowRankOptimizer(AdamW, model, kappa=3, layers_per_booster=1, lr=0.02)
first = 0
if (path := folder / "last.pt").exists():
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["step"]
ddp = DistributedDataParallel(model)
for step, (x, y) in enumerate(batches(steps)):
    if step < first:
        continue
    if step == death and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    cross_entropy(ddp(x[rank::2]), y[rank::2]).backward()
    optimizer.step()
    optimizer.zero_grad()
    if rank == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step + 1}, folder / "new.pt")
        (folder / "new.pt").rename(path)
torch.save((first, optimizer.finalize().state_dict()), folder / f"end{rank}.pt")
distributed.destroy_process_group()
