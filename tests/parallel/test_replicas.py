"""DistributedDataParallel found wherever it is; processes that would train apart are told."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from processes import run, share
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer, LossPlateau
from torch_xgb.parallel import agreement

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {"kappa": 3, "layers_per_booster": 2, "lr": 0.02, "seed": 3}


class Holder(nn.Module):
    """A module that holds the one to train, as Lightning's and Fabric's do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


HIDDENS = {"shapes": (10, 4, 10)}  # of each block; else all are alike
UNEVEN: dict[str, dict[str, Any]] = {
    "shapes": {"layers_per_booster": 1, "layer_sampler": "cyclic"},
    "fewer": {"layers_per_booster": [3, 1, 2], "weight_decay": 0.5},
    "checkpointed": {"layers_per_booster": [3, 1, 2], "checkpointing": True},
    "direft": {"layers_per_booster": [3, 1, 2], "adapter": "direft"},
    "head": {"modules_to_save": ["head"]},
}


def _train(
    name: str, order: str, steps: int = 9, before: Callable[[Any], None] = lambda _: None
) -> dict[str, Any]:
    model = stack(3, hiddens=HIDDENS.get(name, ()))
    if order != "last":
        wrapped = DistributedDataParallel(Holder(model) if order == "held" else model)
        before(wrapped)
    optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS | UNEVEN[name])
    if order == "last":
        wrapped = DistributedDataParallel(model)
    losses, norms = [], []
    for batch in batches(2 * steps)[:steps]:
        x, y = share(batch)
        loss = cross_entropy(wrapped(x), y)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(wrapped.parameters(), 0.3)))
        optimizer.step()
        optimizer.zero_grad()
        distributed.all_reduce(loss := loss.detach().clone())
        losses.append(float(loss) / distributed.get_world_size())
    model = optimizer.finalize()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": weights, "wrapped": wrapped}


def _orders(orders: list[str]) -> dict[str, Any]:
    found = {f"{n} {o}": _train(n, o) for n in UNEVEN for o in orders}
    for one in found.values():
        del one["wrapped"]
    return found


def test_both_orders_and_slots_to_spare_do_what_one_process_does() -> None:
    (alone,) = run(_orders, 1, ["last"])
    for other in run(_orders, 2, ["last", "first", "held"]):
        for name, found in other.items():
            wanted = alone[f"{name.partition(' ')[0]} last"]
            assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-9), name
            assert found["norms"] == pytest.approx(wanted["norms"], abs=1e-9), name
            for key, weight in wanted["weights"].items():
                torch.testing.assert_close(found["weights"][key], weight, atol=1e-9, rtol=0)


def _wrapped_first() -> dict[str, Any]:
    """What else there is about a wrapper that came first."""
    seen: list[int] = []

    def noting(state: object, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append(bucket.buffer().numel())
        return fp16_compress_hook(distributed.group.WORLD, bucket)

    found = _train("head", "first", 2, lambda ddp: ddp.register_comm_hook(None, noting))
    ddp = found["wrapped"]
    during = len(seen)
    x, y = share(batches(1)[0])
    cross_entropy(ddp(x), y).backward()  # the plain model again: all of it is averaged
    gradient = ddp.module.blocks[0].query.weight.grad.clone()
    mean = gradient.clone()
    distributed.all_reduce(mean)

    pair = distributed.new_group([0, 1])
    model = stack(3)
    ddp = DistributedDataParallel(model, process_group=pair)
    with pytest.raises(RuntimeError, match="process group of its own"):
        BoostedLowRankOptimizer(SGD, model, lr=0.1)
    assert all(p.requires_grad for p in model.blocks.parameters())
    with pytest.raises(RuntimeError, match=r"model's 'inner' is wrapped in .*\.module"):
        BoostedLowRankOptimizer(SGD, Holder(ddp), lr=0.1)
    return {"during": during, "after": len(seen) - during, "equal": torch.equal(gradient, mean / 2)}


def test_a_wrapper_that_came_first_keeps_its_hooks_and_goes_on_with_the_plain_model() -> None:
    for found in run(_wrapped_first, 2):
        assert found["during"] and found["after"] and found["equal"]


def _apart(how: str) -> str:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(SGD, model, modules_to_save=["head"], **SETTINGS)
    ddp = DistributedDataParallel(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = share(batches(1)[0])
    with ddp.no_sync() if how == "no_sync" else nullcontext():
        forward = {"alone": model, "inner": ddp.module}.get(how, ddp)
        cross_entropy(forward(x), y).backward()
    if how == "one gradient" and distributed.get_rank() == 1:
        model.head.weight.grad.mul_(1.01)
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    return str(error.value)


def _all_apart() -> dict[str, str]:
    return {how: _apart(how) for how in ("alone", "inner", "no_sync", "one gradient")}


def test_processes_that_would_train_apart_are_told_at_the_first_step() -> None:
    for said in run(_all_apart, 2):
        for how, message in said.items():
            assert "at the first step not all have those of rank 0: rank 1: " in message, how
            assert ("factor" in message) == (how != "one gradient"), message


def _parted(how: str) -> str:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(SGD, model, modules_to_save=["head"], **SETTINGS)
    ddp = DistributedDataParallel(model)
    x, y = share(batches(1)[0])
    cross_entropy(ddp(x), y).backward()
    optimizer.step()
    mine = distributed.get_rank() == 1
    if how == "rate" and mine:
        optimizer.param_groups[0]["lr"] *= 0.5
    if how == "merge" and mine:
        optimizer.merge()
    if how == "weight" and mine:
        drawn = model.get_submodule(optimizer.active_layers[0])
        drawn.query.weight.detach().add_(1.0)
    with ddp.no_sync() if how == "no_sync" else nullcontext():
        optimizer.zero_grad()
        cross_entropy(ddp(x), y).backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return ""


def _all_parted() -> dict[str, str]:
    return {how: _parted(how) for how in ("rate", "merge", "weight", "no_sync")}


def test_processes_that_part_later_are_told() -> None:
    names = {
        "rate": "the rate of group 0",
        "merge": "the booster's index",
        "weight": "the weight blocks.",
        "no_sync": "factor",
    }
    for said in run(_all_parted, 2):
        for how, message in said.items():
            assert "at step 2 not all" in message, how
            assert names[how] in message, message


def _uneven_inputs() -> str:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(SGD, model, **SETTINGS)
    ddp = DistributedDataParallel(model)
    with pytest.raises(RuntimeError) as error, ddp.join():
        for batch in batches(5 - 2 * distributed.get_rank()):
            x, y = share(batch)
            cross_entropy(ddp(x), y).backward()
            optimizer.step()
    assert optimizer.booster_step == 0
    return str(error.value)


def test_uneven_inputs_are_refused() -> None:
    for said in run(_uneven_inputs, 2):
        assert "join()" in said and "as many batches" in said


def _not_a_number(nonfinite: str) -> list[Any]:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(SGD, model, nonfinite=nonfinite, **SETTINGS)
    ddp = DistributedDataParallel(model)
    seen: list[Any] = []
    for i, batch in enumerate(batches(3)):
        x, y = share(batch)
        if i == 1 and distributed.get_rank() == 1:
            x = x * float("nan")
        cross_entropy(ddp(x), y).backward()
        try:
            optimizer.step()
        except RuntimeError as error:
            seen.append(str(error))
        optimizer.zero_grad()
    return [*seen, optimizer.booster_step, float(optimizer.finalize().head.weight.sum())]


def test_processes_decide_alike_where_one_has_a_gradient_that_is_not_finite() -> None:
    for nonfinite in ("error", "skip"):
        first, second = run(_not_a_number, 2, nonfinite)
        assert first == second
        assert first[-2] == 2 and len(first) == (3 if nonfinite == "error" else 2)


def _before_init(joined: bool) -> Any:
    """Build the optimizer before the group; then train a model of its own, or one with others."""
    rank, group = distributed.get_rank(), distributed.group.WORLD
    store = distributed.PrefixStore("again", distributed.distributed_c10d._get_default_store())
    distributed.barrier()
    distributed.destroy_process_group()
    model = stack(3, seed=0 if joined else rank)
    policy = LossPlateau(patience=2, min_steps=2, max_steps=3, smoothing=0.0)
    optimizer = BoostedLowRankOptimizer(
        SGD, model, kappa=policy, layers_per_booster=[3, 1], lr=0.1 + 0.1 * rank, lora_alpha=None
    )
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    assert group is not distributed.group.WORLD
    forward = DistributedDataParallel(model) if joined else model
    losses = []
    for batch in batches(8 if joined else 4 + 4 * rank):
        x, y = share(batch)
        loss = cross_entropy(forward(x), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.observe(loss)
        try:
            optimizer.step()
        except ValueError as error:
            return str(error)
        optimizer.zero_grad()
        seen = optimizer.boosting.course.policy
        assert seen is not policy and seen._average == losses[-1]
    return optimizer.booster_index


def test_a_model_of_its_own_in_each_process_hears_of_no_other() -> None:
    one, other = run(_before_init, 2, False)
    assert 0 < one < other


def test_processes_that_turn_out_to_train_one_model_agree_at_the_first_step() -> None:
    for said in run(_before_init, 2, True):
        assert "rank 1: lr" in said


def _copied() -> bool:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(SGD, model, **SETTINGS)
    ddp = DistributedDataParallel(model)
    x, y = share(batches(1)[0])
    cross_entropy(ddp(x), y).backward()
    optimizer.step()
    twin, of_twin = copy.deepcopy((model, optimizer))
    return of_twin.model is twin and of_twin.booster_step == 1


def test_an_optimizer_of_several_processes_is_copied() -> None:
    assert run(_copied, 2) == [True, True]


def test_a_head_that_no_loss_uses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper waits for its gradient and averages none: the words name it, and the way out."""
    mine = {"factor 0 of a": torch.ones(2), "parameter 0 of group 1": None}

    def gathered(ours: object, group: object) -> list[object]:
        theirs = {"factor 0 of a": (2.0, 2.0), "parameter 0 of group 1": None}
        return [ours, (theirs, {})]

    monkeypatch.setattr(agreement, "gather", gathered)
    said = "rank 1: factor 0 of a. .*waits for parameter 0 of group 1, .*find_unused_parameters"
    with pytest.raises(RuntimeError, match=said):
        agreement.agree_on_step(1, mine, {}, None)  # type: ignore[arg-type]
