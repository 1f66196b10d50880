"""What a step, a merge and a draw ask of a device: waits, copies and launches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from benchmarks.measures.remote import Asked, Remote, counting, move
from benchmarks.subjects.stack import batches, model
from torch_xgb import BoostedLowRankOptimizer

KAPPA = 3
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16, residual_device='cpu'": {"dtype": torch.bfloat16, "residual_device": "cpu"},
    "bfloat16, with a listener": {"dtype": torch.bfloat16, "listen": True},
    "float16": {"dtype": torch.float16},
    "r=4": {"r": 4},
    "modules_to_save": {"modules_to_save": ["head"]},
    "carry=0.9": {"carry": 0.9, "layers_per_booster": 3},
    "init='gradient'": {"init": "gradient"},
    "adapter='direft'": {"adapter": "direft"},
    "nonfinite='skip'": {"nonfinite": "skip"},
}
Rows = dict[str, Asked]  # of "step", "merge" and "draw"


def asked(
    dtype: torch.dtype = torch.float32,
    listen: bool = False,
    see: Callable[[BoostedLowRankOptimizer], object] = lambda _: None,
    **settings: Any,
) -> Rows:
    """Count a step in the middle of the third booster, its merge, and a draw.

    The base's own work is left out. The first boosters look at the model, at other processes and at
    compilers once.

    Args:
        dtype: Of the model.
        listen: Whether somebody is told of merges.
        see: Is shown the optimizer before what is counted.
        **settings: Of the optimizer.
    """
    settings = {"kappa": KAPPA, "layers_per_booster": 2, "modules_to_save": [], **settings}
    with counting():
        plain = move(model(dtype))
        optimizer = BoostedLowRankOptimizer(AdamW, plain, lr=1e-3, foreach=True, **settings)
        if listen:
            optimizer.on_merge(lambda report: report.lost)
        rows: Rows = {}
        for i, (x, y) in enumerate(batches(3 * KAPPA)):
            loss = cross_entropy(plain(Remote(x.to(dtype))).float(), Remote(y))
            loss.backward()
            see(optimizer)
            with _but_for(optimizer.base), counting() as found:
                optimizer.step()
            optimizer.zero_grad()
            rows["merge" if i % KAPPA == KAPPA - 1 else "step"] = found
        course = optimizer.boosting.course
        with counting() as found:
            optimizer.boosting.begin(course.progress, course.draw)
        return rows | {"draw": found}


@contextmanager
def _but_for(base: torch.optim.Optimizer) -> Iterator[None]:
    """Count apart what a base's step asks for."""
    step = base.step

    def alone(*args: Any, **kwargs: Any) -> Any:
        with counting():
            return step(*args, **kwargs)

    base.step = alone  # type: ignore[method-assign]
    try:
        yield
    finally:
        base.step = step  # type: ignore[method-assign]
