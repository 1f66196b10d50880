"""What a piece of training allocates, and the peak of it above what was there before."""

import gc
import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
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
    gc.collect()  # cycles of earlier models, released in between, would be taken off the sum
    return max(accumulate(changes(run)), default=0)


def changes(run: Callable[[], object]) -> list[int]:
    """List the bytes of every allocation of torch's CPU allocator; a release is below zero."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read once, when the profiler first starts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event.get("name") == "[memory]"]
    found.sort(key=lambda event: event["ts"])
    return [event["args"]["Bytes"] for event in found]
