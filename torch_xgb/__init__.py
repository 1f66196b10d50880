"""XGBLoRA: fine-tuning as gradient boosting with rank-1 LoRA boosters, as one line in a loop."""

from torch_xgb.boosting.release import release
from torch_xgb.forecast.plan import plan
from torch_xgb.ledger.chain import Chain
from torch_xgb.optimizer import BoostedLowRankOptimizer, MergeReport
from torch_xgb.schedule import Decay, LossPlateau, Weighted

__all__ = [
    "BoostedLowRankOptimizer",
    "Chain",
    "Decay",
    "LossPlateau",
    "MergeReport",
    "Weighted",
    "__version__",
    "plan",
    "release",
]

__version__ = "0.1.0"
