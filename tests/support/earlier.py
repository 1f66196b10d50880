"""Runs that an earlier version of the library has saved, for later versions to go on with.

``fixtures/record.py`` makes and saves them, ``test_earlier_versions.py`` goes on.
"""

import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from tiny import Batch, stack
from torch_xgb import BoostedLowRankOptimizer, LossPlateau, Weighted

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "v0.1"
SAVED, STEPS = 5, 10  # saved after so many steps of so many


@dataclass
class Case:
    """A run: its settings, made anew each time, and its model.

    ``place`` is where it is when it is saved: the booster's index and its step.
    """

    settings: Callable[[], dict[str, Any]]
    dtype: torch.dtype = torch.float64
    kind: str = "linear"
    depth: int = 2
    place: tuple[int, int] = (1, 2)


def _plateau() -> dict[str, Any]:
    policy = LossPlateau(patience=1, min_steps=2, max_steps=3, min_improvement=0.5, smoothing=0.5)
    return {"kappa": policy, "modules_to_save": ["head"]}


CASES = {
    "lora": Case(lambda: {"r": 2, "lora_alpha": 3.0}),
    "bf16-residual": Case(lambda: {"merge_precision": "residual"}, torch.bfloat16),
    "carry": Case(lambda: {"carry": 0.97, "kappa": 2}, place=(2, 1)),
    "plateau-head": Case(_plateau, place=(2, 1)),
    "callable-weighted": Case(
        lambda: {"kappa": lambda t: 4 - t % 2, "layer_sampler": Weighted([1, 4, 2])},
        depth=3,
        place=(1, 1),
    ),
    "direft-gradient": Case(
        lambda: {"adapter": "direft", "init": "gradient", "r": [2, 1]}, kind="conv1d"
    ),
}
LEDGERS = {
    "ledger": Case(lambda: {"kappa": 2, "r": [2, 1], "modules_to_save": ["head"]}),
    "packed": Case(
        lambda: {"kappa": 3, "shrinkage": 0.5, "modules_to_save": ["head"]}, torch.float32, "conv1d"
    ),
}
ZERO = {"stage-1": 1, "stage-3": 3}
ZERO_SETTINGS: dict[str, Any] = {
    "r": 1,
    "kappa": 3,
    "layers_per_booster": 1,
    "modules_to_save": ["head"],
    "seed": 3,
    "lr": 0.02,
    "eps": 1e-4,
    "lora_alpha": None,  # of these versions the default
}


def pack(folder: Path, name: str) -> None:
    """Put a folder's files into one file beside the others: each alone is mostly padding."""
    with tarfile.open(FOLDER / f"{name}.tar.xz", "w:xz") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder), recursive=False, filter=_plain)


def unpack(name: str, folder: Path) -> Path:
    """Take them out again."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def begin(case: Case, seed: int = 0, **more: Any) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    """The model and its optimizer, untrained."""
    model = stack(case.depth, case.kind, case.dtype, seed=seed)
    given = {"kappa": 3, "layers_per_booster": 1, "seed": 1, "lr": 0.02, **case.settings(), **more}
    given.setdefault("lora_alpha", None)  # of these versions the default
    return model, BoostedLowRankOptimizer(AdamW, model, **given)


def train(model: nn.Module, optimizer: BoostedLowRankOptimizer, data: Iterable[Batch]) -> None:
    """Train with all of the data."""
    for x, y in data:
        logits = model(x)
        loss = cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, y)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        optimizer.zero_grad()


def filled(case: Case, vector: Tensor) -> nn.Module:
    """A plain model of these weights."""
    model = stack(case.depth, case.kind, case.dtype, seed=9)
    state = model.state_dict()
    parts = vector.split([tensor.numel() for tensor in state.values()])
    model.load_state_dict({n: part.view_as(state[n]) for n, part in zip(state, parts, strict=True)})
    return model


def zero_case(stage: int) -> Any:
    """A run under DeepSpeed, through the JSON."""
    from zero_runs import Case as ZeroCase

    return ZeroCase(stage, client=False, settings=ZERO_SETTINGS, steps=STEPS)
