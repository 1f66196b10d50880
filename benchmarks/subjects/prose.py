"""Text of one domain for a causal LM: the docstrings of Python's own library, as they stand.

Those of benchmarks.subjects.docstrings, sessions and names included, in a running text that is cut
into windows of tokens. A text's hash decides its part of the split.
"""

import hashlib
import math
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.subjects.classification import Batch
from benchmarks.subjects.docstrings import documented

LENGTH, ROWS, WINDOWS = 64, 4, 128  # tokens of a window; windows of a step, and of a score
TRAIN, SEARCH, SCORED = "train", "held out", "scored"
_UPTO = ((0.8, TRAIN), (0.9, SEARCH), (1.0, SCORED))  # shares of the texts


@cache
def texts(root: Path | None = None) -> dict[str, list[str]]:
    """Return the docstrings of each part, each once.

    Raises:
        ValueError: If the interpreter came without the source of its library.
    """
    parts: dict[str, list[str]] = {part: [] for _, part in _UPTO}
    for text in dict.fromkeys(text for _, text in documented(root or _library())):
        digest = hashlib.sha256(text.encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        parts[next(part for upto, part in _UPTO if share < upto)].append(text)
    if not all(parts.values()):
        raise ValueError(f"{root or _library()} lacks the source of Python's library")
    return parts


def windows(tokenizer: PreTrainedTokenizerBase, found: Sequence[str]) -> Tensor:
    """Return so many tokens a row, ``(n, LENGTH)``, texts ended by the tokenizer's end of text."""
    ids: list[int] = []
    for text in found:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def batches(read: Tensor, steps: int, seed: int) -> Iterator[Batch]:
    """Yield so many batches of ROWS windows, in an order that the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    rounds = math.ceil(steps * ROWS / len(read))
    order = torch.cat([torch.randperm(len(read), generator=generator) for _ in range(rounds)])
    for drawn in order[: steps * ROWS].split(ROWS):
        ids = read[drawn]
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@torch.no_grad()
def loss(model: nn.Module, read: Tensor, count: int = WINDOWS) -> float:
    """Return the mean loss in nats a token on evenly spread windows, the first token given."""
    model.eval()
    chosen = read[torch.linspace(0, len(read) - 1, min(count, len(read))).long()]
    parts = chosen.split(ROWS)
    sums = [float(model(input_ids=part, labels=part).loss) * len(part) for part in parts]
    return sum(sums) / len(chosen)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))
