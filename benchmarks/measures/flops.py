"""FLOPs of all matrix products."""

from collections import Counter
from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode

from torch_xgb.forecast.flops import UNKNOWN_TO_TORCH


def count_flops(run: Callable[[], object]) -> Counter[str]:
    """Count the FLOPs of all matrix products during ``run``, by operator."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        run()
    return Counter({str(op): n for op, n in counter.get_flop_counts().get("Global", {}).items()})
