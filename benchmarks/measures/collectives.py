"""What a process sends its peers while it trains."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from benchmarks.methods.routes import ROUTES, single
from benchmarks.subjects.stack import batches

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "broadcast",
    "reduce_scatter_tensor",
)
Record = dict[str, Any]


def measure(name: str, dtype: str, steps: int) -> Record:
    """Train by a route in this process and its peers, and return what was seen here."""
    from torch.distributed.tensor.debug import CommDebugMode

    _forget_accelerate()
    merging: list[int] = []
    with _sizes_sent() as sent:
        route = single if name == "single" else ROUTES[name]
        optimizer, losses = route(getattr(torch, dtype), batches(steps))
        factors = [f.numel() * f.element_size() for f in optimizer.boosting.lent]
        pace = optimizer.boosting.pace
        merge = pace.merge

        def counted_merge() -> None:
            before = len(sent)
            with CommDebugMode() as counter:
                merge()
            merging.append(counter.get_total_counts() + len(sent) - before)

        setattr(pace, "merge", counted_merge)  # noqa: B010
        sent.clear()
        seen = [float(loss) for loss in losses]
    return {
        "losses": seen,
        "merges": len(merging),
        "in merges": sum(merging),
        "sent": sum(size for name, size in sent if name == "all_reduce") / steps,
        "factors": sum(factors),
    }


@contextmanager
def _sizes_sent() -> Iterator[list[tuple[str, int]]]:
    """Note the size in bytes of every collective called by name and of every DDP bucket."""
    sizes: list[tuple[str, int]] = []
    originals = {name: getattr(distributed, name) for name in COLLECTIVES}
    wrap = DistributedDataParallel.__init__

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else None
            sizes.append((name, first.nbytes if isinstance(first, Tensor) else 0))
            return original(*args, **kwargs)

        return called

    def reduce(state: None, bucket: distributed.GradBucket) -> Future[Tensor]:
        flat = bucket.buffer().div_(distributed.get_world_size())
        sizes.append(("all_reduce", flat.nbytes))
        work = originals["all_reduce"](flat, async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    def wrapping(self: Any, *args: Any, **kwargs: Any) -> None:
        wrap(self, *args, **kwargs)
        self.register_comm_hook(None, reduce)

    for name, original in originals.items():
        setattr(distributed, name, noting(name, original))
    setattr(DistributedDataParallel, "__init__", wrapping)  # noqa: B010
    try:
        yield sizes
    finally:
        for name, original in originals.items():
            setattr(distributed, name, original)
        setattr(DistributedDataParallel, "__init__", wrap)  # noqa: B010


def _forget_accelerate() -> None:
    """Let accelerate be set up again, in the same process."""
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name, None)
    state = sys.modules.get("accelerate.state")
    if state is not None:
        for kept in (state.AcceleratorState, state.PartialState, state.GradientState):
            kept._reset_state()
