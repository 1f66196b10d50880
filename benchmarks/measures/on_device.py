"""What must hold on an accelerator, as checks that each return what they found."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from benchmarks.subjects.stack import Stack, batches, model
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.formulas.streams import Field
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.weight import Weight

KAPPA, STEPS = 3, 10
SETTINGS: dict[str, Any] = {"kappa": KAPPA, "layers_per_booster": 2, "lr": 1e-3, "seed": 5}


@dataclass(frozen=True)
class Found:
    """A check's answer.

    Attributes:
        held: Whether what must hold does.
        says: What was seen.
    """

    held: bool
    says: str


Check = Callable[[torch.device], Found]


def boosted(
    plain: nn.Module, optimizer_class: Any = AdamW, **settings: Any
) -> BoostedLowRankOptimizer:
    """Build the optimizer; the head is trained in full."""
    return BoostedLowRankOptimizer(optimizer_class, plain, **{**SETTINGS, **settings})


def run(plain: nn.Module, optimizer: Any, device: torch.device, steps: int = STEPS) -> list[float]:
    """Take steps of an ordinary loop; return the losses."""
    losses = []
    dtype = next(plain.parameters()).dtype
    for x, y in batches(steps):
        loss = cross_entropy(plain(x.to(device, dtype)).float(), y.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


# The same on every device.


def draws(device: torch.device) -> Found:
    """Blocks, first factors and random numbers of an entry are those of the CPU, to the bit."""
    here, there = boosted(model(torch.float32)), boosted(model(torch.float32).to(device))
    same = here.active_layers == there.active_layers
    pairs = zip(here.active_factors.values(), there.active_factors.values(), strict=True)
    same = same and all(
        torch.equal(a, b.cpu()) for p, q in pairs for a, b in zip(p, q, strict=True)
    )
    field, part = Field.of(3, 1, "a check"), slice(1000, 1300)
    bits = [field.bits(part, part, one) for one in (torch.device("cpu"), device)]
    return Found(same and torch.equal(bits[0], bits[1].cpu()), "blocks, factors, bits of entries")


def merges(device: torch.device) -> Found:
    """The same product goes into the same weight with the same bits, under every policy."""
    apart = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for precision in ("nearest", "stochastic", "residual"):
            ends = [_merged(dtype, precision, one) for one in (torch.device("cpu"), device)]
            if not all(torch.equal(a, b) for a, b in zip(*ends, strict=True)):
                apart.append(f"{dtype} {precision}".removeprefix("torch."))
    return Found(not apart, f"apart: {', '.join(apart)}" if apart else "9 policies and dtypes")


def _merged(dtype: torch.dtype, precision: str, device: torch.device) -> list[Tensor]:
    g = torch.Generator().manual_seed(2)
    linear = nn.Linear(300, 200, bias=False)
    linear.weight.data = torch.randn(200, 300, generator=g).to(device, dtype)
    merger, weight = Merger(precision, 7), Weight("a.weight", (linear,), "weight")
    for t in range(3):
        left, right = torch.randn(200, 1, generator=g), torch.randn(1, 300, generator=g)
        merger.merge(weight, left.to(device), right.to(device), 0.01, t)
    return [linear.weight.detach().cpu(), *(E.cpu() for E in merger.residuals.values())]


def losses(device: torch.device) -> Found:
    """A run's losses are the CPU's but for the rounding of products."""
    ends = []
    for one in (torch.device("cpu"), device):
        plain = model(torch.float32).to(one)
        ends.append(run(plain, boosted(plain), one))
    off = max(abs(a - b) for a, b in zip(*ends, strict=True))
    return Found(off < 1e-3, f"{STEPS} losses, {off:.1e} apart at most")


# Where the host waits.


def waits(device: torch.device) -> Found:
    """A step waits for nothing and a merge once, as CUDA's own check sees it."""
    plain = model(torch.bfloat16).to(device)
    optimizer, seen = boosted(plain), []
    for x, y in batches(3 * KAPPA):
        cross_entropy(plain(x.to(device, torch.bfloat16)).float(), y.to(device)).backward()
        with _told_of_waits(device) as told:
            optimizer.step()
        optimizer.zero_grad()
        seen.append(len(told))
    steps, (merge,) = seen[-KAPPA:-1], seen[-1:]
    return Found(max(steps) == 0 and merge <= 1, f"steps {steps}, merge {merge}")


@contextmanager
def _told_of_waits(device: torch.device) -> Iterator[list[Any]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def late(device: torch.device) -> Found:
    """A gradient that is not finite does no harm, and is said before anything is merged."""
    plain = model(torch.float32).to(device)
    optimizer = boosted(plain)
    said = 0
    for i, (x, y) in enumerate(batches(STEPS)):
        spoilt = x.to(device) * (torch.inf if i == KAPPA - 2 else 1)
        cross_entropy(plain(spoilt), y.to(device)).backward()
        try:
            optimizer.step()
        except RuntimeError:
            said += 1
        optimizer.zero_grad()
    finite = all(bool(p.isfinite().all()) for p in optimizer.finalize().parameters())
    return Found(finite and said == 1, f"said {said} times, the model finite: {finite}")


# Ways to train.


def routes(device: torch.device) -> Found:
    """Ordinary ways to train come to an end with a plain model."""
    failed = []
    for name, route in ROUTES.items():
        try:
            plain, optimizer = route(device)
            plain = optimizer.finalize()
            if not all(bool(p.isfinite().all()) for p in plain.parameters()):
                failed.append(f"{name} (not finite)")
        except Exception as error:
            failed.append(f"{name} ({type(error).__name__}: {str(error)[:120]})")
    return Found(not failed, f"failed: {'; '.join(failed)}" if failed else ", ".join(ROUTES))


def _plain(device: torch.device, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    plain = model(dtype).to(device)
    optimizer = boosted(plain, **settings)
    run(plain, optimizer, device)
    return plain, optimizer


def _autocast(device: torch.device) -> Any:
    plain = model(torch.float32).to(device)
    optimizer = boosted(plain)
    with torch.autocast(device.type, torch.bfloat16):
        run(plain, optimizer, device)
    return plain, optimizer


def _scaled(device: torch.device) -> Any:
    plain = model(torch.float32).to(device)
    optimizer, scaler = boosted(plain), torch.amp.GradScaler(device.type)
    for x, y in batches(STEPS):
        with torch.autocast(device.type, torch.float16):
            loss = cross_entropy(plain(x.to(device)).float(), y.to(device))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return plain, optimizer


def _resumed(device: torch.device) -> Any:
    plain, optimizer = _plain(device, torch.bfloat16, carry=0.5)
    saved = copy.deepcopy((plain.state_dict(), optimizer.state_dict()))
    again: Stack = model(torch.bfloat16).to(device)
    resumed = boosted(again, carry=0.5)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    ends = [run(*one, device) for one in ((plain, optimizer), (again, resumed))]
    if ends[0] != ends[1]:
        raise RuntimeError("a resumed run has other losses")
    return again, resumed


def _offloaded(device: torch.device) -> Any:
    return _plain(device, torch.bfloat16, residual_device="cpu")


def _compiled(device: torch.device) -> Any:
    plain = model(torch.float32).to(device)
    optimizer = boosted(plain)
    for block in plain.blocks:
        block.compile(fullgraph=True)
    run(plain, optimizer, device)
    return plain, optimizer


ROUTES: dict[str, Callable[[torch.device], Any]] = {
    "float32": _plain,
    "bfloat16": lambda device: _plain(device, torch.bfloat16),
    "fused": lambda device: _plain(device, fused=True),
    "capturable": lambda device: _plain(device, capturable=True),
    "init='gradient'": lambda device: _plain(device, init="gradient"),
    "record": lambda device: _plain(device, record=True),
    "autocast": _autocast,
    "GradScaler": _scaled,
    "resumed": _resumed,
    "residual_device='cpu'": _offloaded,
    "compiled blocks": _compiled,
}

CHECKS: dict[str, Check] = {
    "draws": draws,
    "merges": merges,
    "losses": losses,
    "waits": waits,
    "late": late,
    "routes": routes,
}
