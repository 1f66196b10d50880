"""XGBLoRA: fine-tuning as gradient boosting with rank-1 LoRA boosters, as one line in a loop."""

from torch_xgb.boosting.release import release
from torch_xgb.forecast.plan import plan
from torch_xgb.ledger.chain import Chain
from torch_xgb.optimizer import BoostedLowRankOptimizer, MergeReport
from torch_xgb.schedule.plateau import LossPlateau
from torch_xgb.schedule.samplers import Weighted

__all__ = [
    "BoostedLowRankOptimizer",
    "Chain",
    "LossPlateau",
    "MergeReport",
    "Weighted",
    "__version__",
    "plan",
    "release",
]

__version__ = "0.1.0"
