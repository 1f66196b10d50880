"""FSDP2's policies, and compilers around its blocks: what they leave of what is computed.

On a CPU offloading changes nothing but what is copied: there all of it runs as it is. Where the
host and a device differ is tried on a device that is none, see ``elsewhere``. Two processes are
started once for everything.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from benchmarks.measures.remote import DEVICE, Remote, move
from elsewhere import elsewhere
from processes import run_once, share
from tiny import batches, quick
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.processes import everyone, total
from torch_xgb.weights.dtensors import whole

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {"r": 1, "kappa": 2, "layers_per_booster": 1, "lr": 0.02, "seed": 3}
OFFLOAD = {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
PINNED = {"offload_policy": CPUOffloadPolicy()}
HEAD = {"modules_to_save": ["head"]}
BF16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
BF16_UNCAST = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
OUT = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)


def sharded(model: Any, options: dict[str, Any], device: torch.device) -> nn.Module:
    model = move(model) if device == DEVICE else model
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    both = {name: one for name, one in options.items() if not name.startswith("of_")}
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **both | options.get("of_blocks", {}))
    return fully_shard(model, mesh=mesh, **both | options.get("of_root", {}))


def here(tensor: Tensor) -> Tensor:
    kept = whole(tensor.detach())
    return (kept.here if isinstance(kept, Remote) else kept).clone()


def train(model: nn.Module, optimizer: Any, data: Any, device: torch.device, clip: bool) -> Any:
    """Return losses and norms, the same in every process."""
    losses, norms = [], []
    for batch in data:
        x, y = share(batch) if everyone() else batch
        output = model(Remote(x) if device == DEVICE else x)
        loss = cross_entropy(output.cpu().double(), y)
        loss.backward()
        if clip:
            norms.append(float(here(nn.utils.clip_grad_norm_(model.parameters(), 0.3))))
        optimizer.step()
        optimizer.zero_grad()
        (mean,) = total([(loss.detach().reshape(1).to(device), everyone())])
        losses.append(mean.item() / (distributed.get_world_size() if everyone() else 1))
    return losses, norms


def trained(
    settings: dict[str, Any],
    options: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    backends: Any = None,
    clip: bool = True,
    data_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Train, and once more from what was saved inside a booster; without options, unsharded."""
    device = DEVICE if backends else torch.device("cpu")
    data = batches(5, data_dtype or dtype)

    def begun() -> tuple[nn.Module, Any]:
        model = quick(dtype=dtype)
        model = model if options is None else sharded(model, options, device)
        return model, BoostedLowRankOptimizer(AdamW, model, **SETTINGS | settings)

    with elsewhere(backends) if backends else nullcontext():
        model, optimizer = begun()
        first = train(model, optimizer, data[:3], device, clip)
        state = optimizer.state_dict()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        middle = {name: here(value) for name, value in weights.items()}
        then = train(model, optimizer, data[3:], device, clip)
        again, resumed = begun()
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        assert train(again, resumed, data[3:], device, clip) == then
        final = {name: here(p) for name, p in optimizer.finalize().named_parameters()}
    logs = [a + b for a, b in zip(first, then, strict=True)]
    factors = optimizer.boosting.factors[0].device.type
    return {"logs": logs, "middle": middle, "final": final, "factors": factors}


def mixed(policy: Any, data_dtype: torch.dtype) -> dict[str, Any]:
    options = {"mp_policy": policy, "of_root": {"mp_policy": OUT}}
    if policy is BF16_UNCAST:
        options["of_root"] = {"mp_policy": policy}
    return trained(HEAD, options, torch.float32, data_dtype=data_dtype)


def compiled(order: tuple[str, ...]) -> list[float]:
    """Losses of evaluation and training in turn, of what was done to a model in some order."""
    torch.compiler.reset()
    model, cpu = quick(), torch.device("cpu")
    optimizer: Any = None
    for done in order:
        if done == "shard":
            sharded(model, {}, cpu)
        elif done == "boost":
            optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS)
        for module in {"blocks": model.blocks, "model": [model]}.get(done, []):
            module.compile(backend="aot_eager")
    losses = []
    for batch in batches(3):
        with torch.no_grad():
            losses.append(float(model(share(batch)[0]).square().mean()))
        losses += train(model, optimizer, [batch], cpu, True)[0]
    return losses


ON_CPUS = {
    "offloaded": (HEAD, OFFLOAD | {"reshard_after_forward": 1}),
    "kept gathered": ({"carry": 0.9}, {"reshard_after_forward": False}),
}
ELSEWHERE = {  # and the same on CPUs
    "offloaded": ({"carry": 0.9, "adapter": "direft"}, PINNED, torch.float64, ["nccl"]),
    "blocks alone": (HEAD, {"of_blocks": PINNED}, torch.bfloat16, ["nccl"]),
    "a head, clipped": (HEAD, OFFLOAD, torch.float64, ["gloo", "nccl"]),
}
MIXED = {
    "cast": partial(mixed, BF16, torch.float32),
    "not cast": partial(mixed, BF16_UNCAST, torch.bfloat16),
}
ORDERS = [
    ("shard", "boost"),
    ("blocks", "shard", "boost"),
    ("shard", "boost", "blocks"),
    ("shard", "boost", "model"),
]


def _all() -> dict[str, Any]:
    found: dict[str, Any] = {name: trained(*case) for name, case in ON_CPUS.items()}
    for name, (settings, options, dtype, backends, *clip) in ELSEWHERE.items():
        found[f"away: {name}"] = trained(settings, options, dtype, backends, *clip)
        found[f"here: {name}"] = trained(settings, {}, dtype, None, *clip)
    found |= {name: make() for name, make in MIXED.items()}
    return found | {str(order): compiled(order) for order in ORDERS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_once(tmp_path_factory, _all, 2)


@pytest.mark.parametrize("name", ON_CPUS)
def test_one_process_computes_the_same(both: list[Any], name: str) -> None:
    wanted = trained(ON_CPUS[name][0])
    for found in both:
        for part in ("logs", "middle", "final"):
            torch.testing.assert_close(found[name][part], wanted[part], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_offloaded_meets_nothing_of_the_device(both: list[Any], name: str) -> None:
    """Bitwise what CPUs compute: whatever mixes both, or sends from the host, has raised."""
    for found in both:
        away, wanted = found[f"away: {name}"], found[f"here: {name}"]
        assert (away.pop("factors"), wanted.pop("factors")) == (DEVICE.type, "cpu")
        torch.testing.assert_close(away, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_precision_merges_in_the_precision_of_the_shards(both: list[Any], name: str) -> None:
    """A sum of rank two, which it would not be if weights were rounded to bfloat16."""
    before = {n: p.detach() for n, p in quick(dtype=torch.float32).named_parameters()}
    one = trained(HEAD, None, torch.float32)["logs"][0]
    for found in both:
        assert found[name]["logs"][0] == pytest.approx(one, abs=0.02)
        moved = [v - before[n] for n, v in found[name]["middle"].items() if "blocks" in n]
        sigma = [torch.linalg.svdvals(one.double()) for one in moved if one.any()]
        assert sigma and all(s[2] < 1e-4 * s[0] for s in sigma)  # of two boosters


@pytest.mark.parametrize("order", ORDERS[1:])
def test_compilers_compute_the_same(both: list[Any], order: tuple[str, ...]) -> None:
    for found in both:
        assert found[str(order)] == pytest.approx(found[str(ORDERS[0])], abs=1e-9)
