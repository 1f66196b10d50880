"""transformers' own checkpointing of activations, without what it computes for nobody."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

__all__ = ["spare_input_gradients"]


def spare_input_gradients(model: nn.Module) -> None:
    """Let backward stop at the lowest drawn block of a model with transformers' checkpointing.

    ``activation_checkpointing_enable()`` (once ``gradient_checkpointing_enable()``) asks for
    gradients of the embeddings' output, and backward then computes every block again, whatever is
    drawn. Only checkpointing with reentrance needs those gradients; without checkpointing, or with
    that, nothing is done. The results are the same. The Trainer's factory and callback call this.
    """
    checkpoints = [
        m._gradient_checkpointing_func
        for m in model.modules()
        if getattr(m, "gradient_checkpointing", False)
        and hasattr(m, "_gradient_checkpointing_func")
    ]
    settings = [getattr(checkpoint, "keywords", {}) for checkpoint in checkpoints]
    if checkpoints and all(s.get("use_reentrant") is False for s in settings):
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.disable_input_require_grads()  # type: ignore[no-untyped-call]
