"""FSDP2: weights sharded by ``fully_shard``, factors whole, merges on local shards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from processes import run, share
from tiny import batches, pooled, stack
from torch_xgb import BoostedLowRankOptimizer, Decay

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {"r": 1, "kappa": 3, "layers_per_booster": 2, "lr": 0.02, "seed": 3}


def shard(model: nn.Module, how: str) -> nn.Module:
    size = distributed.get_world_size()
    names = ("replicate", "shard") if how == "hybrid" else ("shard",)
    mesh = init_device_mesh("cpu", (1, size) if how == "hybrid" else (size,), mesh_dim_names=names)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if how == "mixed" else None
    options = {"mesh": mesh} | ({} if policy is None else {"mp_policy": policy})
    if how == "columns":  # within the experts
        options["shard_placement_fn"] = lambda p: Shard(p.shape.index(10)) if p.ndim == 3 else None
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def build(settings: dict[str, Any], how: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    kind = "conv1d" if how == "conv1d" else "linear"
    model = stack(3, kind, dtype)
    if "target_parameters" in settings:
        pooled(model)
    if how == "after":
        optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS | settings)
        shard(model, how)
    else:
        if how != "whole":
            shard(model, how)
        optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS | settings)
    return model, optimizer


def full(tensor: Tensor) -> Tensor:
    whole = tensor.detach()
    return (whole.full_tensor() if isinstance(whole, DTensor) else whole).clone()


def train(model: nn.Module, optimizer: Any, data: Any, clip: float | None = 0.3) -> Any:
    losses, norms = [], []
    for batch in data:
        x, y = share(batch)
        loss = cross_entropy(model(x.to(next(model.parameters()).dtype)).double(), y)
        loss.backward()
        if clip is not None:
            norms.append(float(full(nn.utils.clip_grad_norm_(model.parameters(), clip))))
        optimizer.step()
        optimizer.zero_grad()
        distributed.all_reduce(loss := loss.detach().clone())
        losses.append(float(loss) / distributed.get_world_size())
    return losses, norms


def train_by_closures(model: nn.Module, optimizer: Any, data: Any) -> Any:
    """As Lightning does: the first backward pass comes after the first call of ``step()``."""
    losses, norms = [], []
    for batch in data:
        x, y = share(batch)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            norms.append(float(full(nn.utils.clip_grad_norm_(model.parameters(), 0.3))))
            return loss

        distributed.all_reduce(loss := optimizer.step(closure).detach().clone())
        losses.append(float(loss) / distributed.get_world_size())
    return losses, norms


def _train(settings: dict[str, Any], how: str) -> dict[str, Any]:
    by_closures = how == "closures"
    model, optimizer = build(settings, "blocks" if by_closures else how, torch.float64)
    loop = train_by_closures if by_closures else train
    losses, norms = loop(model, optimizer, batches(10))
    middle = {name: full(value) for name, value in model.state_dict().items()}
    averager = optimizer.boosting._sharding.averager
    sent = 0 if averager is None else averager.bytes
    factors = sum(f.numel() * f.element_size() for f in optimizer.boosting.lent)
    final = {name: full(p) for name, p in optimizer.finalize().named_parameters()}
    assert distributed.get_world_size() == 1 or how == "whole" or sent <= 1.01 * 10 * factors
    return {"losses": losses, "norms": norms, "middle": middle, "final": final}


CASES = {
    "lora": ({}, "blocks"),
    "after": ({"modules_to_save": ["head"]}, "after"),
    "closures": ({"modules_to_save": ["head"]}, "closures"),
    "head": ({"modules_to_save": ["head"], "init": "gradient"}, "blocks"),
    "direft": ({"adapter": "direft"}, "blocks"),
    "bias-hybrid": ({"bias": "targets"}, "hybrid"),
    "conv1d": ({}, "conv1d"),
    "checkpointed": ({"checkpointing": True}, "blocks"),
    "checkpointed-after": ({"checkpointing": True}, "after"),
    "carry": (
        {"carry": Decay(3.0), "r": [2, 1], "shrinkage": 0.7, "layers_per_booster": 3},
        "blocks",
    ),
    "experts": ({"target_parameters": ["experts"], "r": 2}, "blocks"),
    "experts-after": ({"target_parameters": ["experts"]}, "after"),
    "experts-within": ({"target_parameters": ["experts"], "r": 2}, "columns"),
}


def _all_cases(whole: bool) -> dict[str, Any]:
    return {
        name: _train(s, "whole" if whole and h != "conv1d" else h) for name, (s, h) in CASES.items()
    }


def test_shards_do_what_whole_weights_do() -> None:
    (alone,) = run(_all_cases, 1, True)
    for shards in run(_all_cases, 2, False):
        for name, found in shards.items():
            wanted = alone[name]
            assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-9), name
            assert found["norms"] == pytest.approx(wanted["norms"], abs=1e-9), name
            for part in ("middle", "final"):
                assert found[part].keys() == wanted[part].keys()
                for key, weight in wanted[part].items():
                    torch.testing.assert_close(found[part][key], weight, atol=1e-9, rtol=0)


def _count_collectives() -> dict[str, int]:
    """Count what a merge sends, by torch.distributed's own counters of calls."""
    from torch.distributed.tensor.debug import CommDebugMode

    counts = {}
    for precision in ("nearest", "residual", "stochastic"):
        dtype = torch.float32 if precision == "nearest" else torch.bfloat16
        model, optimizer = build({"merge_precision": precision}, "blocks", dtype)
        data = batches(2)
        for batch in data:
            x, y = share(batch)
            cross_entropy(model(x.to(dtype)).float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        with CommDebugMode() as counter, _counted(distributed) as calls:
            optimizer.merge()
        counts[precision] = counter.get_total_counts() + len(calls)
    return counts


class _counted:  # noqa: N801
    """Notes every collective called by name while it is entered."""

    NAMES = ("all_reduce", "all_gather_into_tensor", "all_gather_object", "broadcast", "all_gather")

    def __init__(self, module: Any) -> None:
        self.module, self.calls = module, []
        self.originals = {name: getattr(module, name) for name in self.NAMES}

    def __enter__(self) -> list[str]:
        for name, original in self.originals.items():
            setattr(self.module, name, self._noting(name, original))
        return self.calls

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(self.module, name, original)

    def _noting(self, name: str, original: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return original(*args, **kwargs)

        return called


def test_a_merge_communicates_nothing() -> None:
    for counts in run(_count_collectives, 2):
        assert counts == {"nearest": 0, "residual": 0, "stochastic": 0}


class Routed(nn.Module):
    """Blocks of two experts, of which a batch may reach one, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(6, 6, dtype=torch.float64) for _ in range(2)) for _ in range(3)
        )
        self.head = nn.Linear(6, 3, dtype=torch.float64).requires_grad_(False)

    def forward(self, x: Tensor, expert: int | None) -> Tensor:
        for experts in self.blocks if expert is not None else ():
            x = x + experts[expert](x)
        return self.head(x)


def _routed() -> list[float]:
    torch.manual_seed(0)
    model = fully_shard(Routed())
    settings = {"layers_per_booster": None, "kappa": 9, "unused": "skip", "lr": 0.1}
    optimizer = BoostedLowRankOptimizer(AdamW, model, modules_to_save=["head"], **settings)
    rank, seen = distributed.get_rank(), []
    for expert in (0, None if rank else 0, None if rank else 1):
        for _ in range(2):  # accumulated
            x = torch.full((4, 6), 1.0 + rank, dtype=torch.float64, requires_grad=True)
            model(x, expert).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(sum(f.detach().abs().sum() for f in optimizer.boosting.factors)))
    return seen


def test_a_process_whose_batch_reaches_no_factor_takes_part() -> None:
    one, other = run(_routed, 2)
    assert one == other and len(set(one)) == 3


def _resume(folder: str, precision: str, dtype: torch.dtype) -> Any:
    """Through torch.distributed.checkpoint, saved inside a booster."""
    data = batches(9)
    settings = {"merge_precision": precision}
    model, optimizer = build(settings, "blocks", dtype)
    train(model, optimizer, data[:4])
    path = Path(folder, str(dtype))
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=path)
    state = optimizer.state_dict()
    torch.save(state, Path(folder, f"{dtype}-{distributed.get_rank()}.pt"))
    straight = train(model, optimizer, data[4:])
    model, optimizer = build(settings, "blocks", dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    weights = model.state_dict()
    checkpoint.load({"model": weights}, checkpoint_id=path)
    model.load_state_dict(weights)
    optimizer.load_state_dict(
        torch.load(Path(folder, f"{dtype}-{distributed.get_rank()}.pt"), weights_only=False)
    )
    return straight, train(model, optimizer, data[4:])


def _resume_both(folder: str) -> list[Any]:
    return [
        _resume(folder, "auto", torch.float32),
        _resume(folder, "residual", torch.bfloat16),
    ]


def test_resume_inside_a_booster_is_bitwise(tmp_path: Path) -> None:
    for found in run(_resume_both, 2, str(tmp_path)):
        for straight, resumed in found:
            assert straight == resumed


def _looked_at_before_each_step() -> int:
    model, optimizer = build({"modules_to_save": ["head"]}, "after", torch.float32)
    for batch in batches(4, torch.float32):
        x, y = share(batch)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        if optimizer.booster_step:
            with torch.no_grad():
                model(x)  # leaves the root's weights gathered
        optimizer.step()
    return int(optimizer.booster_index)


def test_an_evaluation_between_backward_and_step() -> None:
    assert run(_looked_at_before_each_step, 2) == [1, 1]
