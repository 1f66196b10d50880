"""A byte language model of random weights, and the text that every Python carries for it.

The text is the source of the running interpreter's standard library, read and never imported,
without its tests; a file's name decides its part of the split. Nothing is downloaded and no text is
kept in this repository; another Python version gives other figures.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from benchmarks.subjects.classification import Batch

WIDTH, DEPTH, HEADS, LENGTH, ROWS, BYTES = 128, 4, 2, 64, 8, 256
# Whatever is no matrix of a block, by the suffixes of names: every method trains it in full.
BESIDE = ("tokens", "places", "norm_in", "norm_between", "norm_out", "head")
TRAIN, SEARCH, SCORED = "train", "held out", "scored"
_UPTO = ((0.9, TRAIN), (0.95, SEARCH), (1.0, SCORED))  # shares of the files
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
WINDOWS = 512  # of LENGTH bytes, that a model is scored on


class Output(NamedTuple):
    """What a model of transformers would return."""

    loss: Tensor
    logits: Tensor


class Block(nn.Module):
    """Attention and a feed-forward map, each on a normed copy of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_in, self.norm_between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.mix = (nn.Linear(WIDTH, n * WIDTH, bias=False) for n in (3, 1))
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, LENGTH, WIDTH)."""
        parts = self.qkv(self.norm_in(x)).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1) for y in parts)
        # Written out: on a CPU with AMX torch's fused attention is the slowest part of a step.
        scores = torch.baddbmm(self.mask, q, k.mT, alpha=(WIDTH // HEADS) ** -0.5)
        seen = torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS))
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return x + self.down(relu(self.up(self.norm_between(x))))


class ByteLM(nn.Module):
    """Predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(BYTES, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm_out, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, BYTES, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Output:
        """Return the mean loss of (rows, LENGTH) bytes, and logits."""
        x = self.tokens(input_ids) + self.places(torch.arange(LENGTH, device=input_ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm_out(x))
        return Output(cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)


def model(seed: int) -> ByteLM:
    """Make the model that the seed decides."""
    torch.manual_seed(seed)
    return ByteLM()


def is_beside(name: str) -> bool:
    """Tell whether a parameter, by its name, is no matrix of a block."""
    return any(part in BESIDE for part in name.split("."))


@cache
def text() -> dict[str, Tensor]:
    """Return the bytes of each part of the split.

    Raises:
        ValueError: If the interpreter came without the source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: dict[str, list[bytes]] = {part: [] for _, part in _UPTO}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _SKIPPED & set(name.parts):
            share = _share(name.as_posix())
            parts[next(part for upto, part in _UPTO if share < upto)].append(path.read_bytes())
    found = {part: b"".join(texts) for part, texts in parts.items()}
    if any(len(read) <= LENGTH for read in found.values()):
        raise ValueError(f"{root} lacks the source of Python's library")
    return {p: torch.frombuffer(bytearray(read), dtype=torch.uint8) for p, read in found.items()}


@cache
def digest() -> str:
    """Return what tells this text from another Python's."""
    whole = hashlib.sha256(b"".join(part.numpy().tobytes() for part in text().values()))
    return whole.hexdigest()[:12]


def batches(steps: int, seed: int) -> Iterator[Batch]:
    """Yield so many batches of ROWS windows, from where the seed says."""
    read, generator = text()[TRAIN], torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield _windows(read, torch.randint(len(read) - LENGTH, (ROWS,), generator=generator))


def scoring(part: str, windows: int = WINDOWS) -> Iterator[Batch]:
    """Yield the windows a model is scored on, evenly spread, the same for all."""
    read = text()[part]
    starts = torch.linspace(0, len(read) - LENGTH - 1, windows).long()
    for some in starts.split(8 * ROWS):
        yield _windows(read, some)


def _windows(read: Tensor, starts: Tensor) -> Batch:
    found = torch.stack([read[i : i + LENGTH + 1] for i in starts.tolist()]).long()
    return {"input_ids": found[:, :-1], "labels": found[:, 1:]}


def _share(name: str) -> float:
    """Map a name to [0, 1), the same on every machine and in every Python."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
