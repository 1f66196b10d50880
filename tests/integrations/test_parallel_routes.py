"""Tensor parallelism of transformers, by the ways that people train such a model.

One start of two processes does everything. accelerate and the Trainer offer it to accelerators
alone and are told that there are some: nothing of their code for it needs one.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, ParallelismConfig, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch_xgb.integrations.accelerate import checkpoint
from torch_xgb.integrations.transformers import BoostedFactory
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM, Trainer
from transformers import TrainingArguments as Arguments
from transformers.distributed import DistributedConfig

from processes import run
from torch_xgb import BoostedLowRankOptimizer

pytestmark = pytest.mark.distributed

WORDS = 12
SETTINGS: dict[str, Any] = {
    "momentum": 0.9,
    "r": 2,
    "kappa": 2,
    "layers_per_booster": 1,
    "lora_alpha": None,
    "seed": 3,
}
# Two maps in one weight: each process keeps a part of either.
PACKED = {
    f"model.layers.*.mlp.{name}": style
    for map_, style in {"gate_up_proj": "packed_colwise", "down_proj": "rowwise"}.items()
    for name in (map_, f"{map_}.weight")
}


def loaded(folder: str, plan: dict[str, str] | None = None) -> Any:
    size = distributed.get_world_size()
    config = DistributedConfig(tp_size=size, **({"tp_plan": plan} if plan else {}))
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **({"distributed_config": config} if size > 1 else {})
    )


def batches() -> list[Tensor]:
    return list(torch.randint(WORDS, (5, 4, 6), generator=torch.Generator().manual_seed(1)))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return cross_entropy(model(batch).logits.flatten(0, 1), batch.roll(1, 1).flatten())


def whole(model: nn.Module) -> dict[str, Tensor]:
    kept = {name: p.detach() for name, p in model.named_parameters()}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for n, p in kept.items()}


def loop(folder: str, plan: Any = None, before: Callable[[Any], Any] = lambda _: None) -> Any:
    model = loaded(folder, plan)
    before(model)
    optimizer = BoostedLowRankOptimizer(SGD, model, lr=1.0, **SETTINGS)
    losses = []
    for batch in batches():
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, whole(optimizer.finalize())


def compiled(model: Any) -> None:
    """Compile every block of a model that is cut."""
    for layer in model.model.layers if distributed.get_world_size() > 1 else ():
        layer.compile(backend="aot_eager")


def begin_anew() -> None:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    if distributed.get_world_size() > 1:
        partial_state = PartialState(cpu=True)
        partial_state._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def accelerated(folder: str) -> Any:
    begin_anew()
    size = distributed.get_world_size()
    config = ParallelismConfig(tp_size=size) if size > 1 else None
    accelerator = Accelerator(cpu=True, parallelism_config=config)
    own = loaded(folder)
    model, optimizer = accelerator.prepare(
        own, BoostedLowRankOptimizer(SGD, own, lr=1.0, **SETTINGS)
    )
    losses, said = [], ""
    for batch in batches():
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    if size > 1:
        with pytest.raises(RuntimeError) as raised:
            checkpoint(accelerator, optimizer)
        said = str(raised.value)
    return losses, whole(optimizer.optimizer.finalize()), said


def by_trainer(folder: str) -> Any:
    begin_anew()
    model = loaded(folder)
    args = Arguments(
        f"{folder}/out",
        use_cpu=True,
        per_device_train_batch_size=4,
        max_steps=5,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.2,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        seed=1,
    )
    begin_anew()  # the arguments have asked what there is
    rows = [{"input_ids": row, "labels": row} for batch in batches() for row in batch]
    boosted = (BoostedFactory, {"base": SGD, **SETTINGS})
    trainer = Trainer(model, args, train_dataset=rows, optimizer_cls_and_kwargs=boosted)
    trainer.train()
    return [e["loss"] for e in trainer.state.log_history if "loss" in e], whole(model)


ROUTES: dict[str, Callable[[str], Any]] = {
    "packed": partial(loop, plan=PACKED),
    "compiled": partial(loop, before=compiled),
    "accelerate": accelerated,
    "trainer": by_trainer,
}


def every_route(folder: str) -> dict[str, Any]:
    return {name: route(folder) for name, route in ROUTES.items()}


def test_each_route_does_what_one_process_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = Phi3Config(
        vocab_size=WORDS, num_attention_heads=4, pad_token_id=None, eos_token_id=1, **sizes
    )
    model = Phi3ForCausalLM(config)
    model.save_pretrained(tmp_path)
    (alone,) = run(every_route, 1, str(tmp_path))
    for found in run(every_route, 2, str(tmp_path)):
        for name, (losses, weights, *_) in alone.items():
            moved = [W.detach() - weights[n] for n, W in model.named_parameters()]
            assert max(float(d.abs().max()) for d in moved) > 1e-2, name
            if found[name][0]:  # the Trainer logs on the first process
                assert found[name][0] == pytest.approx(losses, abs=1e-5), name
            for key, weight in weights.items():
                torch.testing.assert_close(found[name][1][key], weight, atol=1e-5, rtol=0)
        assert "torch.distributed.checkpoint" in found["accelerate"][2]
