"""The forward pass of a pair and its gradients, against the dense weight's."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from tiny import KINDS, Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.formulas.lowrank import add_low_rank
from training import train


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    settings = {"lora_alpha": None, "kappa": None, **settings}
    return BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1, **settings)


def fill(optimizer: BoostedLowRankOptimizer, scale: float = 0.5) -> None:
    """Give every factor values of its own, B's too."""
    with torch.no_grad():
        for pair in optimizer.active_factors.values():
            for factor in pair:
                factor.copy_(torch.randn_like(factor) * scale)


@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_gradients_are_projections_of_the_weights(kind: str, bias: bool) -> None:
    """∇A = s·Bᵀ G and ∇B = s·G Aᵀ, with G the gradient of the dense weight W + s·B A."""
    model = stack(depth=2, kind=kind)
    if not bias:
        for module in model.blocks.modules():
            if isinstance(module, nn.Linear):
                module.bias = None
    optimizer = boosted(model, r=2, layers_per_booster=None, lora_alpha=3.0)
    fill(optimizer)
    dense = stack(depth=2, kind=kind)
    if not bias:
        for module in dense.blocks.modules():
            if isinstance(module, nn.Linear):
                module.bias = None
    dense.load_state_dict(model.state_dict())
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    cross_entropy(dense(x), y).backward()
    for name, (A, B) in optimizer.active_factors.items():
        G = dense.get_submodule(name).weight.grad
        G = G.T if kind == "conv1d" else G
        torch.testing.assert_close(A.grad, 1.5 * B.T @ G, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(B.grad, 1.5 * G @ A.T, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_input() -> None:
    model, dense = stack(depth=2), stack(depth=2)
    optimizer = boosted(model, r=2, layers_per_booster=None)
    fill(optimizer)
    dense.load_state_dict(model.state_dict())
    x, y = batches(1)[0]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    cross_entropy(model(ours), y).backward()
    cross_entropy(dense(theirs), y).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@given(
    shape=st.lists(st.integers(1, 3), max_size=3),
    features=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_gradcheck(
    shape: list[int], features: tuple[int, int, int], needs: tuple[bool, bool, bool]
) -> None:
    """Inputs of any number of dimensions, of which any part is frozen."""
    columns, rows, r = features
    x = torch.randn(*shape, columns, dtype=torch.float64, requires_grad=needs[0])
    A = torch.randn(r, columns, dtype=torch.float64, requires_grad=needs[1])
    B = torch.randn(rows, r, dtype=torch.float64, requires_grad=needs[2])
    W = torch.randn(rows, columns, dtype=torch.float64)
    bias = torch.randn(rows, dtype=torch.float64)

    def map_(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return add_low_rank(nn.functional.linear(x, W, bias), x, A, B, 0.7)

    expected = x @ W.T + bias + 0.7 * (x @ A.T) @ B.T
    torch.testing.assert_close(map_(x, A, B), expected, rtol=1e-12, atol=1e-12)
    if any(needs):
        assert torch.autograd.gradcheck(map_, (x, A, B))


def test_gradients_of_gradients() -> None:
    """A gradient penalty differentiates twice; the plain model can, so must the attached one."""
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    A = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    B = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    W = torch.randn(5, 4, dtype=torch.float64)

    def map_(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return torch.tanh(add_low_rank(nn.functional.linear(x, W), x, A, B, 0.7))

    assert torch.autograd.gradgradcheck(map_, (x, A, B))


def test_gradient_penalty() -> None:
    model, dense = stack(depth=2), stack(depth=2)
    optimizer = boosted(model, r=2, layers_per_booster=None)
    fill(optimizer)
    dense.load_state_dict(model.state_dict())
    gradients = []
    for m in (model, dense):
        x, y = batches(1)[0]
        (slope,) = torch.autograd.grad(
            cross_entropy(m(x.requires_grad_()), y), x, create_graph=True
        )
        m.zero_grad()
        slope.square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)
    for name, (A, B) in optimizer.active_factors.items():
        G = dense.get_submodule(name).weight.grad
        torch.testing.assert_close(A.grad, B.T @ G, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(B.grad, G @ A.T, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_model(dtype: torch.dtype) -> None:
    """The sum is as good as one computed in float32 and rounded; the factors stay float32."""
    model = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)
    optimizer = boosted(model, layers_per_booster=None)
    fill(optimizer)
    assert {f.dtype for pair in optimizer.active_factors.values() for f in pair} == {torch.float32}
    x = torch.randn(64, 32).to(dtype)
    y = model[0](x)
    (A, B), W = optimizer.active_factors["0"], model[0]
    exact = x.float() @ (W.weight.float() + B @ A).T + W.bias.float()
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), exact, rtol=8e-3, atol=4 * torch.finfo(dtype).eps)
    model(x).float().square().mean().backward()
    assert all(
        f.grad.dtype == torch.float32 for pair in optimizer.active_factors.values() for f in pair
    )
    assert all(f.grad.count_nonzero() for pair in optimizer.active_factors.values() for f in pair)


def test_backward_keeps_no_tensor_of_the_outputs_size() -> None:
    """Only x, x Aᵀ and the factors: what makes a booster cheaper than the dense weight."""
    model = nn.Sequential(nn.Linear(7, 13, dtype=torch.float64))
    boosted(model, r=2)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(torch.randn(3, 5, 7, dtype=torch.float64))
    assert y.requires_grad
    assert sum(torch.Size(shape).numel() for shape in kept) <= 15 * 7 + 15 * 2 + 2 * 7 + 2 * 13


def test_backward_stops_at_the_lowest_drawn_block() -> None:
    model = stack(depth=4)
    boosted(model, layers_per_booster=1, layer_sampler=lambda *_: [2])
    x = batches(1)[0][0]
    x = model.blocks[1](model.blocks[0](model.embed(x)))
    assert not x.requires_grad
    assert model.blocks[2](x).requires_grad


def test_inplace_activation_after_a_linear_map() -> None:
    """The pair is added in place into the map's output; what comes next may write there as well."""
    torch.manual_seed(0)
    inplace = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()
    plain = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    plain.load_state_dict(inplace.state_dict())
    x, gradients = torch.randn(4, 5, dtype=torch.float64), []
    for model in (inplace, plain):
        optimizer = boosted(model, r=2, layers_per_booster=None)
        torch.manual_seed(1)
        fill(optimizer)
        model(x).square().sum().backward()
        gradients.append([f.grad for pair in optimizer.active_factors.values() for f in pair])
    assert all(map(torch.equal, *gradients))


def test_inplace_arithmetic_on_the_output() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(5, 6, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            y = self.map(x)
            y *= 2
            return y + 1

    model = Doubling()
    optimizer = boosted(model, r=2)
    fill(optimizer)
    x = torch.randn(4, 5, dtype=torch.float64)
    A, B = optimizer.active_factors["map"]
    W, bias = model.map.weight, model.map.bias
    y = model(x)
    torch.testing.assert_close(y, 2 * (x @ (W + B @ A).T + bias) + 1, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad((2 * (x @ (W + B @ A).T + bias) + 1).square().sum(), [A, B])
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), [A, B]), expected)


def test_keyword_arguments() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = KINDS["linear"](5, 6)
            self.second = KINDS["conv1d"](6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(x=self.first(input=x))

    model = ByKeyword().double()
    optimizer = boosted(model, r=2, layers_per_booster=None)
    fill(optimizer)
    x = torch.randn(4, 5, dtype=torch.float64)
    assert set(optimizer.active_factors) == {"first", "second"}
    (A1, B1), (A2, B2) = optimizer.active_factors["first"], optimizer.active_factors["second"]
    hidden = x @ (model.first.weight + B1 @ A1).T + model.first.bias
    expected = hidden @ (model.second.weight + (B2 @ A2).T) + model.second.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_empty_batch() -> None:
    model = nn.Sequential(nn.Linear(5, 6)).double()
    optimizer = boosted(model)
    model(torch.zeros(0, 5, dtype=torch.float64)).sum().backward()
    assert all(f.grad.count_nonzero() == 0 for f in optimizer.active_factors["0"])


def test_non_contiguous_input() -> None:
    model = nn.Sequential(nn.Linear(5, 6)).double()
    optimizer = boosted(model, r=2)
    fill(optimizer)
    x = torch.randn(5, 3, 4, dtype=torch.float64).permute(2, 1, 0)
    torch.testing.assert_close(model(x), model(x.contiguous()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_evaluation_between_steps(context: Any) -> None:
    """What is computed without gradients is the same, and leaves training as it was."""
    model = stack(depth=2)
    optimizer = boosted(model, r=2, layers_per_booster=None)
    fill(optimizer)
    x, y = batches(1)[0]
    with context():
        evaluated = model(x)
    trained = model(x)
    assert torch.equal(evaluated, trained)
    cross_entropy(trained, y).backward()
    assert all(f.grad.count_nonzero() for pair in optimizer.active_factors.values() for f in pair)


class _Precisions(TorchDispatchMode):
    """Notes how exact every product of matrices was asked to be."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        if func._schema.name in ("aten::mm", "aten::addmm_", "aten::addmm"):
            self.seen.add(torch.backends.mkldnn.matmul.fp32_precision)
        return func(*args, **kwargs or {})


def test_products_of_a_pair_are_never_rounded() -> None:
    y, x, A, B = (torch.randn(shape) for shape in ((6, 5), (6, 4), (1, 4), (5, 1)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with _Precisions() as products:
            add_low_rank(y, x, A.requires_grad_(), B.requires_grad_(), 1.0).sum().backward()
        assert products.seen == {"ieee"}
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_may_be_set_the_new_way() -> None:
    y, x, A, B = (torch.randn(shape) for shape in ((6, 5), (6, 4), (1, 4), (5, 1)))
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        add_low_rank(y, x, A.requires_grad_(), B.requires_grad_(), 1.0).sum().backward()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_dropout_acts_on_the_pair_alone_and_keeps_the_mean() -> None:
    model = nn.Sequential(nn.Linear(40, 3, dtype=torch.float64))
    optimizer = boosted(model, r=2, lora_dropout=0.3)
    x = torch.randn(1, 40, dtype=torch.float64)
    plain = nn.functional.linear(x, model[0].weight, model[0].bias)
    assert torch.equal(model(x), plain)
    fill(optimizer)
    model.eval()
    whole = model(x)
    assert torch.equal(model(x), whole)
    model.train()
    A, B = optimizer.active_factors["0"]
    with torch.no_grad():
        outputs = model(x.expand(20000, -1))
    assert not torch.equal(outputs[0], outputs[1])
    kept = (outputs - plain)[:, None, :]
    mean, error = kept.mean(0)[0], kept.std(0)[0] / 20000**0.5
    assert ((mean - (whole - plain)[0]).abs() < 5 * error).all()
    # Dropped entries of x, as PEFT does it, not dropped outputs: the variance says which.
    variance = (0.3 / 0.7) * ((B @ A) ** 2 @ (x[0] ** 2))
    torch.testing.assert_close(kept.var(0)[0], variance.detach(), rtol=0.05, atol=0)


# Whoever follows the computation operation by operation.


def test_torch_func() -> None:
    model, (x, _) = stack(), batches(1)[0]
    optimizer = boosted(model, layers_per_booster=None)
    fill(optimizer)
    each = torch.func.vmap(lambda one: model(one[None])[0])(x)
    torch.testing.assert_close(each, model(x))
    factors = dict(model.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (x,)).square().sum()

    name = next(name for name in factors if "boosters" in name)
    loss(factors).backward()
    assert (
        loss(factors).isfinite()
        and torch.func.grad(loss)(factors)[name].shape == factors[name].shape
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace() -> None:
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(3, 5)
    fill(boosted(model, layers_per_booster=None))
    traced = torch.jit.trace(model, (x,))
    torch.testing.assert_close(traced(x + 1), model(x + 1))


class Selective(Stack):
    """Keeps the products of its blocks and computes the rest again."""

    def forward(self, x: Tensor) -> Tensor:
        aten = torch.ops.aten
        kept = partial(create_selective_checkpoint_contexts, [aten.mm.default, aten.addmm.default])
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, context_fn=kept)
        return self.head(x.mean(-2))


def test_selective_checkpointing() -> None:
    ends = []
    for kind in (Stack, Selective):
        model = stack()
        model.__class__ = kind
        optimizer = BoostedLowRankOptimizer(
            torch.optim.SGD, model, lr=0.1, kappa=2, layers_per_booster=2
        )
        ends.append(train(model, optimizer, batches(5)).losses)
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)


def test_dropout_acts_on_what_a_direft_pair_reads() -> None:
    model = nn.Sequential(nn.Linear(5, 30, dtype=torch.float64))
    optimizer = boosted(model, r=2, adapter="direft", lora_dropout=0.3)
    fill(optimizer)
    x = torch.randn(1, 5, dtype=torch.float64)
    y = nn.functional.linear(x, model[0].weight, model[0].bias)
    model.eval()
    whole = model(x)
    assert torch.equal(model(x), whole)
    A, B = optimizer.active_factors["0"]
    model.train()
    with torch.no_grad():
        outputs = model(x.expand(20000, -1))
    mean, error = outputs.mean(0), outputs.std(0) / 20000**0.5
    assert ((mean - whole[0]).abs() < 5 * error).all()
    variance = (0.3 / 0.7) * ((B @ A) ** 2 @ (y[0] ** 2))
    torch.testing.assert_close(outputs.var(0), variance.detach(), rtol=0.05, atol=0)
