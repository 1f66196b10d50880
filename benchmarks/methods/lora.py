"""PEFT's LoRA on a model."""

import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.optim import AdamW

from benchmarks.methods.method import Trainee


def adapted(model: nn.Module, config: LoraConfig) -> PeftModel:
    """Wrap the model."""
    with warnings.catch_warnings():
        # peft 0.21 asks for this under a name that transformers 5 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, config)


def trainee(model: nn.Module, config: LoraConfig, lr: float) -> Trainee:
    """Train what the wrapper leaves trainable by AdamW; at the end it is merged."""
    wrapped = adapted(model, config)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, lr=lr, weight_decay=0.0)
    return Trainee(wrapped, optimizer, wrapped.merge_and_unload)
