"""What a step needs, before training: counted on shapes, without weights or accelerator.

``shapes`` makes models of fake tensors, ``footprint`` runs a step of them, ``flops`` counts what
torch does not, ``methods`` says it for boosters, LoRA and full fine-tuning, ``needs`` holds the
answer, ``plan`` asks.

May import boosters, schedule, targets, weights, settings, checks. One more method: a function of
``Steps`` in ``methods`` that returns a ``Need``, and its place in ``plan``.
"""

from torch_xgb.forecast.plan import plan
from torch_xgb.forecast.shapes import KNOWN

__all__ = ["KNOWN", "plan"]
