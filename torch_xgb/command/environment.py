"""``torch-xgb env``: versions and what is available, for bug reports."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

import torch

from torch_xgb.command.answer import Answer, Commands, command

__all__ = ["add_env", "environment", "version"]

PACKAGES = (
    "numpy",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "safetensors",
    "datasets",
    "matplotlib",
    "trl",
    "bitsandbytes",
    "torchao",
)
# Named one by one: what else is in the environment is nobody's business, and may be a secret.
VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCHDYNAMO_DISABLE",
    "WORLD_SIZE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "ACCELERATE_USE_CPU",
)


def add_env(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command(commands, "env", _env, "say versions and what is available, for bug reports")


def version() -> str:
    """Return the library's version; of a tree that is not installed, that it is none."""
    return _version("torch-xgb") or "not installed"


def environment() -> dict[str, Any]:
    """Return what a report of a fault should say, in JSON's types."""
    return {
        "torch_xgb": version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch": _torch(),
        "devices": list(_devices()),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {n: os.environ[n] for n in VARIABLES if n in os.environ},
    }


def _env(options: argparse.Namespace) -> Answer:
    """Say versions of Python, torch and what goes with them, and what there is to compute with."""
    facts = environment()
    rows = list(_rows(facts))
    width = max(len(name) for name, _ in rows)
    return Answer("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows), facts)


def _rows(facts: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield indent + name, ""
            yield from _rows(value, indent + "  ")
        else:
            said = ", ".join(value) if isinstance(value, list) else value
            yield indent + name, "no" if said is None else str(said)


def _torch() -> dict[str, Any]:
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "threads": torch.get_num_threads(),
        "float32 products": torch.get_float32_matmul_precision(),
        "distributed": ", ".join(_backends()) or None,
    }


def _backends() -> Iterator[str]:
    if torch.distributed.is_available():
        for name in ("gloo", "nccl", "mpi"):
            if getattr(torch.distributed, f"is_{name}_available")():
                yield name


def _devices() -> Iterator[str]:
    yield f"cpu ({platform.machine()})"
    for i in range(torch.cuda.device_count()):
        held = torch.cuda.get_device_properties(i)
        yield f"cuda:{i} ({held.name}, {held.total_memory / 2**30:.0f} GiB)"
    if torch.backends.mps.is_available():
        yield "mps"


def _version(name: str) -> str | None:
    try:
        return installed(name)
    except PackageNotFoundError:
        return None
