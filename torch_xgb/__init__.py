"""XGBLoRA: fine-tuning as gradient boosting with rank-1 LoRA boosters, as one line in a loop."""

from torch_xgb.optimizer import BoostedLowRankOptimizer, MergeReport

__all__ = ["BoostedLowRankOptimizer", "MergeReport", "__version__"]

__version__ = "0.1.0"
