"""Random numbers that are pure functions of what they are for."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

__all__ = ["by", "stream"]


def stream(
    seed: int, booster_index: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator that depends on its arguments alone; no global one is touched."""
    digest = hashlib.blake2b(f"{seed}/{booster_index}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "big") >> 1)


def by(generator: torch.Generator) -> dict[str, Any]:
    """Return the arguments that draw from a generator where it is.

    The default device is the user's to set.
    """
    return {"generator": generator, "device": generator.device}
