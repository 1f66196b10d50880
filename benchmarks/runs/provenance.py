"""Where a measurement comes from: without it a figure cannot be compared with another."""

import os
import platform
from importlib.metadata import version

import torch

_PACKAGES = ("torch", "transformers", "peft")


def provenance() -> dict[str, str | int]:
    """Name the machine and the versions that a measurement was made with."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def provenance_line() -> str:
    """Say the same in one line."""
    return ", ".join(f"{name} {value}" for name, value in provenance().items())
