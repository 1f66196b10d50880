"""Every optimizer of torch resumes bitwise, whatever the dtypes of what it trains."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS, Optimizer, SparseAdam

from bases import BASES
from tiny import WIDTH, Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer

OPTIMIZERS = sorted(
    (
        found
        for found in vars(torch.optim).values()
        if isinstance(found, type)
        and issubclass(found, Optimizer)
        and found not in (Optimizer, LBFGS, SparseAdam)
    ),
    key=lambda found: found.__name__,
)
DTYPES = [torch.bfloat16, torch.float32, torch.float64]


class Cast(nn.Module):
    """A head that computes in a dtype of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * WIDTH, dtype=dtype).view(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.weight.dtype), self.weight)


def model_of(body: torch.dtype, head: torch.dtype) -> Stack:
    model = stack(2, dtype=body)
    model.head = Cast(head)
    return model


def train(model: nn.Module, optimizer: BoostedLowRankOptimizer, first: int, last: int) -> None:
    body = next(model.parameters()).dtype
    for x, y in batches(last, body)[first:]:
        cross_entropy(model(x).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> list[Tensor]:
    tensors = [*model.state_dict().values()]
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        tensors.append(parameter)
        tensors += [v for v in optimizer.state.get(parameter, {}).values() if isinstance(v, Tensor)]
    return tensors


def check_resumes(
    optimizer_class: type[Optimizer], body: torch.dtype, head: torch.dtype, **kwargs: Any
) -> None:
    def build(model: Stack) -> BoostedLowRankOptimizer:
        settings = {"kappa": 4, "layers_per_booster": 1, "modules_to_save": ["head"], "r": 2}
        settings["lora_alpha"] = None
        return BoostedLowRankOptimizer(optimizer_class, model, **settings, **kwargs)

    model = model_of(body, head)
    optimizer = build(model)
    train(model, optimizer, 0, 6)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    other = model_of(body, head)
    other.load_state_dict(saved["model"])
    resumed = build(other)
    resumed.load_state_dict(saved["optimizer"])
    for ours, theirs in ((model, optimizer), (other, resumed)):
        train(ours, theirs, 6, 10)
    for a, b in zip(everything(model, optimizer), everything(other, resumed), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("head", DTYPES, ids=str)
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS, ids=lambda found: found.__name__)
def test_resumes_in_mid_booster(optimizer_class: type[Optimizer], head: torch.dtype) -> None:
    check_resumes(optimizer_class, torch.float32, head)


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS, ids=lambda found: found.__name__)
def test_resumes_with_factors_in_float64(optimizer_class: type[Optimizer]) -> None:
    check_resumes(optimizer_class, torch.float64, torch.bfloat16)


@pytest.mark.parametrize("name", sorted(BASES.keys() - {"callable", "adamw-fused"}))
def test_resumes_with_other_settings(name: str) -> None:
    """The fused kernel wants one dtype, and there are two here."""
    optimizer_class, kwargs = BASES[name]
    check_resumes(optimizer_class, torch.float64, torch.bfloat16, **kwargs)


class Wide(Optimizer):
    """Keeps float32 moments of every Parameter, some of them in lists, as low-bit bases do."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    zeros = torch.zeros(p.shape)
                    state.update(mean=zeros, more=[zeros + 1, {"deep": zeros + 2}])
                state["mean"].lerp_(p.grad.float(), 0.1)
                state["more"][0].lerp_(p.grad.float(), 0.01)
                state["more"][1]["deep"].lerp_(p.grad.float(), 0.001)
                moved = state["mean"] + state["more"][0] + state["more"][1]["deep"]
                p.sub_((group["lr"] * moved).to(p.dtype))


def test_resumes_state_of_another_dtype_than_its_parameter() -> None:
    check_resumes(Wide, torch.float32, torch.bfloat16)
    check_resumes(Wide, torch.float64, torch.float64)
