"""Peak memory of a piece of training, above what was there before."""

import gc
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(run: Callable[[], None], device: torch.device) -> int:
    """Return the largest number of bytes held at once during ``run``, above those held before.

    Every allocation counts: activations, gradients, optimizer state, added parameters, scratch.
    On CUDA torch's allocator keeps the peak; on CPU the profiler writes down each allocation and
    release of torch's allocator and the peak of their running sum is the answer. That slows
    ``run`` down, so nothing should be timed in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read once, when the profiler first starts
    gc.collect()  # cycles of earlier models, released in between, would be taken off the sum
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return max(_running_sum(profiler), default=0)


def _running_sum(profiler: profile) -> list[int]:
    """List the bytes held after each allocation and release that the profiler saw."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    held, sums = 0, []
    for change in changes:
        held += change["args"]["Bytes"]
        sums.append(held)
    return sums
