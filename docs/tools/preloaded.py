"""What tutorials import, once for all of them: their processes are forks of one that has it."""

import warnings

import accelerate
import deepspeed
import matplotlib
import peft
import torch
import transformers
from transformers.utils import logging

import torch_xgb

__all__ = ["accelerate", "deepspeed", "matplotlib", "peft", "torch", "torch_xgb", "transformers"]

matplotlib.use("Agg")
torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()
transformers.AutoModelForSequenceClassification, transformers.Trainer  # noqa: B018 (lazy imports)
# peft 0.21 asks a model for this under a name that transformers 5 deprecates.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
