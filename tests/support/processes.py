"""The same function in one process or in several, over gloo and a file: no port is fixed."""

import os
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import distributed, multiprocessing

Work = Callable[..., Any]
# Loaded once, by the server that processes are forked from: it has run nothing and stays small.
_COMMON = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "transformers", "numpy"]


def run(work: Work, world_size: int, *args: Any) -> list[Any]:
    """Return what ``work(*args)`` returns in each of so many processes, in the order of ranks.

    Each has an initialised process group, also where there is only one. Results travel as files.
    """
    with tempfile.TemporaryDirectory() as folder:
        set_forkserver_preload(_COMMON)
        multiprocessing.start_processes(
            _enter, (work, world_size, folder, args), world_size, start_method="forkserver"
        )
        return [
            torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)
        ]


def run_once(
    temporary: pytest.TempPathFactory, work: Work, world_size: int, *args: Any
) -> list[Any]:
    """Return what ``run`` does; of workers that test side by side the first one runs it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return run(work, world_size, *args)
    kept = temporary.getbasetemp().parent / f"{work.__module__}.{work.__name__}.pt"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            torch.save(run(work, world_size, *args), kept)
    found: list[Any] = torch.load(kept, weights_only=False)
    return found


def _enter(rank: int, work: Work, world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",  # read, never connected to: the group exists already
        MASTER_PORT="0",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        result = work(*args)
        torch.save(result, Path(folder, f"{rank}.pt"))
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def share(batch: Any) -> Any:
    """This process's rows of tensors that every process has."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return [tensor[rank::size].contiguous() for tensor in batch]
