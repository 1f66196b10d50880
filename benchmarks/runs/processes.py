"""A route in so many new processes."""

import importlib.util
import json
import os
import tempfile
import warnings
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from benchmarks.measures.collectives import Record, measure

DTYPES = ("float32", "bfloat16")


def run(name: str, world_size: int, steps: int) -> dict[str, list[Record]]:
    """Measure a route in so many new processes: for each dtype what each of them saw."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_enter, (world_size, folder, name, steps), nprocs=world_size)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world_size)]
    return {dtype: [ranks[dtype] for ranks in found] for dtype in DTYPES}


def _enter(rank: int, world_size: int, folder: str, name: str, steps: int) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    own |= {"LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({key: str(value) for key, value in own.items()})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    found = {dtype: measure(name, dtype, steps) for dtype in DTYPES}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def missing(name: str) -> str | None:
    """Say what a route lacks here, or None."""
    wanted = {"accelerate": ("accelerate",), "Trainer": ("transformers", "accelerate")}
    wanted["DeepSpeed"] = ("deepspeed", "torch_xgb.integrations.deepspeed")
    for module in wanted.get(name.split()[0], ()):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None
