"""A small model trained under DeepSpeed as a case says; run in each of several processes."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from processes import share
from tiny import batches, pooled, stack
from torch_xgb import BoostedLowRankOptimizer

SETTINGS: dict[str, Any] = {
    "r": 2,
    "kappa": 3,
    "layers_per_booster": 2,
    "modules_to_save": ["head"],
    "seed": 3,
    "lr": 0.02,
    "lora_alpha": None,
    "eps": 1e-4,  # of gradients that are zero but for rounding, Adam would make full steps
}
SCHEDULER = {
    "type": "WarmupLR",
    "params": {
        "warmup_min_lr": 0.0,
        "warmup_max_lr": 0.02,
        "warmup_num_steps": 6,
        "warmup_type": "linear",
    },
}


@dataclass
class Case:
    """What differs from run to run."""

    stage: int
    bf16: bool = False
    accumulation: int = 1
    clip: float = 0.0
    client: bool = True  # the optimizer is given, not described in the JSON
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    zero: dict[str, Any] = field(default_factory=lambda: {"stage3_param_persistence_threshold": 0})
    zero_init: bool = False
    scheduler: str = ""  # "", "json", "client" or "callable"
    checkpointed: bool = False  # activations are computed again in the backward pass
    spare: bool = False  # the model holds a last Parameter that it never uses
    steps: int = 10


def model(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """Odd widths, so that shards begin and end within rows."""
    net = stack(hiddens=(9, 7, 5), dtype=dtype, seed=seed)
    if "target_parameters" in case.settings:
        pooled(net)
    if case.spare:
        net.spare = nn.LayerNorm(3)
    if case.checkpointed:
        for block in net.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return net


def data(case: Case) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The micro-batches of each step."""
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    every = batches(case.steps * case.accumulation, dtype)
    for step in range(case.steps):
        yield every[step * case.accumulation : (step + 1) * case.accumulation]


def halved(step: int) -> float:
    return 0.5 ** (step // 4)


def alone(case: Case) -> dict[str, Any]:
    """The same run by an ordinary loop in one process."""
    net = model(case, torch.bfloat16 if case.bf16 else torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, net, **{**SETTINGS, **case.settings})
    schedule = _warmup if case.scheduler == "json" else halved if case.scheduler else lambda _: 1.0
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    losses, norms = [], []
    for micro in data(case):
        for x, y in micro:
            loss = cross_entropy(net(x).float(), y)
            losses.append(loss.item())
            (loss / case.accumulation).backward()
        limit = case.clip or float("inf")
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), limit)))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return {
        "losses": losses,
        "norms": norms,
        "index": optimizer.booster_index,
        "weights": {n: t.float() for n, t in net.state_dict().items()},
    }


def _warmup(step: int) -> float:
    return min(1.0, max(step - 1, 0) / 6) if step else 0.0


def engine_of(case: Case, seed: int = 0, settings: dict[str, Any] | None = None) -> Any:
    """An engine as the case says."""
    import deepspeed
    import torch_xgb.integrations.deepspeed  # noqa: F401

    given = {**SETTINGS, **case.settings, **(settings or {})}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": case.accumulation,
        "zero_optimization": {
            "stage": case.stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            **case.zero,
        },
        "gradient_clipping": case.clip,  # DeepSpeed's default is 1.0
        "steps_per_print": 10**9,
        **case.config,
    }
    if case.bf16:
        config["bf16"] = {"enabled": True}
    if case.scheduler == "json":
        config["scheduler"] = SCHEDULER
    if not case.client:
        config["optimizer"] = {"type": "BoostedLowRank", "params": {"base": "AdamW", **given}}
    with deepspeed.zero.Init(config_dict_or_path=config) if case.zero_init else nullcontext():
        net = model(case, torch.bfloat16 if case.bf16 and case.zero_init else torch.float32, seed)
    optimizer = BoostedLowRankOptimizer(AdamW, net, **given) if case.client else None
    scheduler: Any = None
    if case.scheduler == "client":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, halved)
    elif case.scheduler == "callable":
        scheduler = lambda inner: torch.optim.lr_scheduler.LambdaLR(inner, halved)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return deepspeed.initialize(
            model=net, optimizer=optimizer, config=config, lr_scheduler=scheduler
        )[0]


def steps(engine: Any, micro_batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    """One step of the engine; the losses over all processes."""
    losses = []
    for batch in micro_batches:
        x, y = share(batch)
        loss = cross_entropy(engine(x).float(), y)
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        distributed.all_reduce(mean)
        losses.append(mean.item() / distributed.get_world_size())
    return losses


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """The model's state_dict, gathered."""
    import deepspeed

    parameters = [p for p in engine.module.parameters() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(parameters):
        return {n: t.detach().float().clone() for n, t in engine.module.state_dict().items()}


@contextmanager
def counted(counts: list[str]) -> Iterator[None]:
    """Note every collective of torch.distributed."""
    names = [n for n in dir(distributed) if n.startswith(("all_", "reduce", "broadcast", "gather"))]
    kept = {n: getattr(distributed, n) for n in names if callable(getattr(distributed, n))}

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kw: Any) -> Any:
            counts.append(name)
            return call(*args, **kw)

        return noted

    for name, call in kept.items():
        setattr(distributed, name, noting(name, call))
    try:
        yield
    finally:
        for name, call in kept.items():
            setattr(distributed, name, call)


def follow(case: Case) -> dict[str, Any]:
    """The run under DeepSpeed."""
    from torch_xgb.integrations.deepspeed import boosted

    engine = engine_of(case)
    optimizer = boosted(engine)
    anchor = engine._boosted_client._anchor.parameter
    name = engine.param_names[anchor]
    start = whole_weights(engine)[name]
    losses, norms = [], []
    result: dict[str, Any] = {"anchor": name}
    for step, micro in enumerate(data(case)):
        losses += steps(engine, micro)
        if step == 4:
            result["keys"] = list(engine.module.state_dict())
        norms.append(engine.get_global_grad_norm())
    result |= {
        "losses": losses,
        "norms": [float(n) for n in norms],
        "index": optimizer.booster_index,
        "weights": whole_weights(engine),
    }
    result["anchor moved"] = float((result["weights"][name] - start).abs().max())
    collectives: list[str] = []
    with counted(collectives):
        optimizer.merge()
    result["collectives of a merge"] = collectives
    engine.optimizer.finalize()
    result["left"] = [hook for hook in _hooks(optimizer.model) if "torch_xgb" in hook]
    blocks = optimizer.model.get_submodule("blocks").parameters()
    result["trains again"] = all(p.requires_grad for p in blocks)
    engine.destroy()
    return result


def _hooks(net: nn.Module) -> list[str]:
    hooks = [hook for m in net.modules() for hook in m._forward_hooks.values()]
    owners = [getattr(hook, "__self__", hook) for hook in hooks]
    return [type(owner).__module__ for owner in owners]


def resume(case: Case, folder: str) -> dict[str, Any]:
    """Save in the middle of a booster, go on; load into another model, and go on likewise."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    every = list(data(case))
    engine = engine_of(case)
    for micro in every[:4]:
        steps(engine, micro)
    before = [p.detach().clone() for p in _kept(engine)]
    engine.save_checkpoint(folder, client_state={"note": 7})
    engine.save_16bit_model(folder, "weights.bin")
    result: dict[str, Any] = {
        "restored": all(map(torch.equal, before, _kept(engine))),
        "saved": whole_weights(engine),
        "losses": [loss for micro in every[4:] for loss in steps(engine, micro)],
        "weights": whole_weights(engine),
    }
    engine.destroy()
    distributed.barrier()
    plain = torch.load(f"{folder}/weights.bin", weights_only=True)
    result["save_16bit_model"] = {n: t.float() for n, t in plain.items()}
    if case.stage:
        fp32 = get_fp32_state_dict_from_zero_checkpoint(folder)
        result["zero_to_fp32"] = {n: t.float().clone() for n, t in fp32.items()}
    again = engine_of(case, seed=1)
    _, state = again.load_checkpoint(folder)
    result["note"] = state["note"]
    result["losses again"] = [loss for micro in every[4:] for loss in steps(again, micro)]
    result["weights again"] = whole_weights(again)
    again.destroy()
    return result


def _kept(engine: Any) -> list[Tensor]:
    return [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]


def resume_all(cases: dict[str, Case], folder: str) -> dict[str, Any]:
    """Several of these, in the same processes."""
    return {name: resume(case, f"{folder}/{name}") for name, case in cases.items()}


def follow_all(cases: dict[str, Case]) -> dict[str, Any]:
    """Several runs, in the same processes."""
    return {name: follow(case) for name, case in cases.items()} | {"errors": errors()}


def errors() -> dict[str, str]:
    """What is said of a wrong key, of a missing method, and after the end."""
    from torch_xgb.integrations import deepspeed as integration

    def ended() -> None:
        engine = engine_of(Case(1))
        engine.optimizer.finalize()
        engine.backward(engine(next(data(Case(1)))[0][0]).sum())
        engine.step()

    attempts: dict[str, Callable[[], Any]] = {
        "wrong key": lambda: engine_of(Case(2, client=False, settings={"kapa": 3})),
        "missing method": lambda: integration._touch("no_such_method", print),
        "no boosted optimizer": lambda: integration.boosted(object()),
        "ended": ended,
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said
