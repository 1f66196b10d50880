"""One loop's step, alone or under DeepSpeed's engine through the JSON plugin."""

from typing import Any

import torch
from torch.optim import AdamW

from torch_xgb import BoostedLowRankOptimizer

PARAMS = {"r": 8, "kappa": 8, "layers_per_booster": 4, "lr": 5e-4, "eps": 1e-6, "lora_alpha": 8}


def start_deepspeed() -> None:
    """Make the processes known to each other, and "BoostedLowRank" to DeepSpeed."""
    import deepspeed
    import torch_xgb.integrations.deepspeed  # noqa: F401

    deepspeed.init_distributed()


def alone(model: Any) -> Any:
    """Return the step of a plain loop in one process."""
    optimizer = BoostedLowRankOptimizer(AdamW, model, **PARAMS)
    model.train()

    def step(batch: dict[str, torch.Tensor]) -> float:
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def engine(model: Any, stage: int) -> Any:
    """Return the step of DeepSpeed's engine at a stage of ZeRO."""
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "BoostedLowRank", "params": {"base": "AdamW", **PARAMS}},
        "steps_per_print": 10**9,
    }
    made = deepspeed.initialize(model=model, config=config)[0]

    def step(batch: dict[str, torch.Tensor]) -> float:
        loss = made(**batch, use_cache=False).loss
        made.backward(loss)
        made.step()
        torch.distributed.all_reduce(loss := loss.detach())
        return loss.item() / torch.distributed.get_world_size()

    return step
