"""What of DeepSpeed does not go together with boosters: said before anything is built."""

from __future__ import annotations

from typing import Any

import torch

from torch_xgb import BoostedLowRankOptimizer

__all__ = ["refuse"]


def refuse(engine: Any, boosted: BoostedLowRankOptimizer) -> None:  # noqa: ANN401
    """Refuse a configuration under which merges or gradients would be wrong.

    Args:
        engine: The DeepSpeedEngine, before it wraps its optimizer.
        boosted: The optimizer given or built.

    Raises:
        ValueError: If there is one, or if the optimizer is another model's.
    """
    if boosted.model is not engine.module:
        raise ValueError(
            "the BoostedLowRankOptimizer belongs to another model than deepspeed.initialize was "
            "given: pass the same object to both"
        )
    zero3 = engine.zero_optimization_partition_weights()
    offload = engine.zero_offload_param() if zero3 else None
    wrong = {
        "pipeline parallelism": engine.pipeline_parallelism,
        "expert parallelism": engine.has_moe_layers,
        "tensor parallelism (autotp_size > 1)": engine.autotp_size() > 1,
        "sequence parallelism": engine.sequence_parallel_size > 1,
        "ZenFlow": bool(engine.zenflow),
        "gradient_allreduce_op other than mean": not engine.gradient_average,
        "fp16 without ZeRO (take stage 1, or bf16)": engine.fp16_enabled()
        and not engine.zero_optimization(),
        "torch_autocast in float16": engine.torch_autocast_enabled()
        and engine.torch_autocast_dtype() == torch.float16,
        "zero_hpz_partition_size > 1": zero3 and engine.zero_hpz_partition_size() > 1,
        "zero_quantized_weights": zero3 and engine.zero_quantized_weights(),
        "zero_quantized_nontrainable_weights": zero3
        and engine.zero_quantized_nontrainable_weights(),
        "offload_param to NVMe": offload is not None and offload.device == "nvme",
        "quantised weights": bool(boosted.boosting.booster.beside),
        "modules_to_save_optimizer=": boosted.boosting.settings.modules_to_save_optimizer
        is not None,
        "record= under ZeRO-3, for a ledger keeps whole weights": zero3
        and boosted.chain is not None,
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise ValueError(
            f"BoostedLowRankOptimizer does not support, with DeepSpeed: {'; '.join(found)}"
        )
