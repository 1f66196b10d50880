"""The routes that ``benchmarks.distributed`` measures: how each wraps a model and takes a step.

Every route trains the same small stack of blocks on the same batches, each process on its rows of
them, and differs in whatever a user of it writes.
"""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from benchmarks.subjects.stack import BATCH, Batch, Stack, model, own
from torch_xgb import BoostedLowRankOptimizer

KAPPA = 4
SETTINGS: dict[str, Any] = {
    "kappa": KAPPA,
    "layers_per_booster": 2,
    "lr": 0.01,
    "seed": 3,
    "lora_alpha": 1,
}

Route = Callable[[torch.dtype, list[Batch]], tuple[BoostedLowRankOptimizer, Iterator[Tensor]]]


def boosted(plain: nn.Module) -> BoostedLowRankOptimizer:
    """Build the optimizer; the head is trained in full."""
    return BoostedLowRankOptimizer(AdamW, plain, **SETTINGS)


def loop(
    wrapped: nn.Module, optimizer: Any, data: list[Batch], dtype: torch.dtype
) -> Iterator[Tensor]:
    """Take steps as anybody would, and yield their losses."""
    for batch in data:
        x, y = own(batch, dtype)
        loss = cross_entropy(wrapped(x).float(), y)
        loss.backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def ddp(dtype: torch.dtype, data: list[Batch]) -> Any:
    """DistributedDataParallel around the model, after the optimizer."""
    plain = model(dtype)
    optimizer = boosted(plain)
    return optimizer, loop(DistributedDataParallel(plain), optimizer, data, dtype)


def single(dtype: torch.dtype, data: list[Batch]) -> Any:
    """The plain model in one process."""
    plain = model(dtype)
    optimizer = boosted(plain)
    return optimizer, loop(plain, optimizer, data, dtype)


def _fully_shard(plain: Stack) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in plain.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(plain, mesh=mesh)


def fsdp2(dtype: torch.dtype, data: list[Batch]) -> Any:
    """fully_shard, then the optimizer."""
    plain = model(dtype)
    _fully_shard(plain)
    optimizer = boosted(plain)
    return optimizer, loop(plain, optimizer, data, dtype)


def fsdp2_after(dtype: torch.dtype, data: list[Batch]) -> Any:
    """The optimizer, then fully_shard."""
    plain = model(dtype)
    optimizer = boosted(plain)
    _fully_shard(plain)
    return optimizer, loop(plain, optimizer, data, dtype)


def _accelerated(dtype: torch.dtype, data: list[Batch], sharded: bool) -> Any:
    from accelerate import (
        Accelerator,
        DistributedType,
        FullyShardedDataParallelPlugin,
        PartialState,
    )

    partial = PartialState(cpu=True)
    plugin = None
    if sharded:
        # accelerate offers FSDP to accelerators alone; nothing of its code for it needs one.
        partial._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            cpu_ram_efficient_loading=False,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block"],
        )
    accelerator = Accelerator(cpu=not sharded, fsdp_plugin=plugin)
    if sharded != (accelerator.distributed_type is DistributedType.FSDP):
        raise RuntimeError(f"accelerate has made it {accelerator.distributed_type}")
    plain = model(dtype)
    optimizer = boosted(plain)
    wrapped, prepared = accelerator.prepare(plain, optimizer)

    def steps() -> Iterator[Tensor]:
        for batch in data:
            x, y = own(batch, dtype)
            loss = cross_entropy(wrapped(x).float(), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            prepared.step()
            prepared.zero_grad()
            yield loss.detach()

    return optimizer, steps()


def accelerate_ddp(dtype: torch.dtype, data: list[Batch]) -> Any:
    """Accelerate's prepare, replicated."""
    return _accelerated(dtype, data, sharded=False)


def accelerate_fsdp2(dtype: torch.dtype, data: list[Batch]) -> Any:
    """Accelerate's prepare, sharded."""
    return _accelerated(dtype, data, sharded=True)


def trainer(dtype: torch.dtype, data: list[Batch]) -> Any:
    """The Hugging Face Trainer, replicated; it runs as a whole and its losses are read after."""
    from torch_xgb.integrations.transformers import BoostedFactory
    from transformers import Trainer, TrainingArguments

    rows = [{"x": x.to(dtype), "labels": y} for xs, ys in data for x, y in zip(xs, ys, strict=True)]
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        use_cpu=True,
        ddp_backend="gloo",
        average_tokens_across_devices=False,
        max_steps=len(data),
        per_device_train_batch_size=BATCH // distributed.get_world_size(),
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )
    losses: list[Tensor] = []

    class Noting(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.detach())
            return loss

    made = Noting(
        model(dtype),
        arguments,
        train_dataset=rows,
        optimizer_cls_and_kwargs=(BoostedFactory, dict(SETTINGS)),
    )
    optimizer = made.create_optimizer()

    def steps() -> Iterator[Tensor]:
        made.train()
        yield from losses

    return optimizer, steps()


def deepspeed_stage(stage: int) -> Route:
    """DeepSpeed's engine around the model, with the optimizer as its client."""

    def route(dtype: torch.dtype, data: list[Batch]) -> Any:
        import deepspeed
        import torch_xgb.integrations.deepspeed  # noqa: F401

        config = {
            "train_batch_size": BATCH,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": stage},
            "bf16": {"enabled": dtype is torch.bfloat16},
        }
        plain = model(torch.float32)
        optimizer = boosted(plain)
        engine = deepspeed.initialize(model=plain, optimizer=optimizer, config=config)[0]

        def steps() -> Iterator[Tensor]:
            for batch in data:
                x, y = own(batch, dtype)
                loss = cross_entropy(engine(x).float(), y)
                engine.backward(loss)
                engine.step()
                yield loss.detach()

        return optimizer, steps()

    return route


ROUTES: dict[str, Route] = {
    "DDP": ddp,
    "FSDP2, then the optimizer": fsdp2,
    "the optimizer, then FSDP2": fsdp2_after,
    "accelerate DDP": accelerate_ddp,
    "accelerate FSDP2": accelerate_fsdp2,
    "Trainer DDP": trainer,
    **{f"DeepSpeed stage {stage}": deepspeed_stage(stage) for stage in range(4)},
}
