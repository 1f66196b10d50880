"""Do several processes train what one does, by every route, and what do they send each other?

    python -m benchmarks.distributed                       # every route that is installed
    python -m benchmarks.distributed --route DDP --steps 40

A small stack of residual blocks is trained on CPU over gloo, each step's batch split among the
processes. ``loss difference`` is the largest, over all steps, from the plain model in one process.
``in merges`` counts collectives called while a booster is merged and the next one begun. ``sent``
is what one process hands to all-reduce for the factors, a step; ``factors`` is their size. With one
process nothing need be sent, and some routes do it all the same.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from benchmarks.distributed_routes import KAPPA, ROUTES, batches, single
from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table

DTYPES = ("float32", "bfloat16")
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
        factors = [f.numel() * f.element_size() for f in optimizer._booster.lent]
        merge = optimizer.merge

        def counted_merge() -> None:
            before = len(sent)
            with CommDebugMode() as counter:
                merge()
            merging.append(counter.get_total_counts() + len(sent) - before)

        setattr(optimizer, "merge", counted_merge)  # noqa: B010
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


def compare(ranks: Sequence[Record], alone: Record) -> Record:
    """Set what the processes saw beside what the plain model did."""
    means = [sum(values) / len(ranks) for values in zip(*(r["losses"] for r in ranks), strict=True)]
    differences = [abs(a - b) for a, b in zip(means, alone["losses"], strict=True)]
    return {
        "loss difference": max(differences),
        "merges": {r["merges"] for r in ranks}.pop(),
        "in merges": max(r["in merges"] for r in ranks),
        "sent": ranks[0]["sent"],
        "factors": ranks[0]["factors"],
    }


def missing(name: str) -> str | None:
    """Say what a route lacks here, or None."""
    wanted = {"accelerate": ("accelerate",), "Trainer": ("transformers", "accelerate")}
    wanted["DeepSpeed"] = ("deepspeed", "torch_xgb.integrations.deepspeed")
    for module in wanted.get(name.split()[0], ()):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(argv)
    print(
        f"{provenance_line()}; gloo, one thread a process, kappa {KAPPA}, {options.steps} steps\n"
    )
    alone = run("single", 1, options.steps)
    records, rows = [], []
    for name in options.route or ROUTES:
        if reason := missing(name):
            print(f"skipped {name}: {reason}")
            continue
        for world_size in (1, 2):
            for dtype, ranks in run(name, world_size, options.steps).items():
                found = compare(ranks, alone[dtype][0])
                records.append({"route": name, "world size": world_size, "dtype": dtype} | found)
                figures = [found[key] for key in ("merges", "in merges")]
                rows.append(
                    [name, str(world_size), dtype, f"{found['loss difference']:.1e}"]
                    + [str(figure) for figure in figures]
                    + [f"{found['sent']:,.0f} B", f"{found['factors']:,} B"]
                )
        print(f"measured {name}", file=sys.stderr, flush=True)
    head = ["route", "processes", "dtype", "loss difference", "merges", "in merges"]
    print(table([*head, "sent", "factors"], rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = provenance() | {"steps": options.steps, "kappa": KAPPA, "routes": records}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=14, help="(default: 14, three boosters)")
    parser.add_argument("--route", action="append", choices=ROUTES, help="one or more of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


if __name__ == "__main__":
    main()
