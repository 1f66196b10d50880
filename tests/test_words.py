"""Messages that say what to do, where a new user's first guess goes wrong."""

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train


def boosted(model: Any, **settings: Any) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(torch.optim.AdamW, model, **{"lr": 0.01, **settings})


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: stack().parameters(), r"pass the model itself, not model\.parameters\(\)"),
        (lambda: list(stack().parameters()), "pass the model itself"),
        (lambda: nn.Linear, r"the class Linear: make one of it, Linear\(…\)"),
        (lambda: None, "got NoneType"),
    ],
)
def test_what_is_no_model(model: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        boosted(model())


@pytest.mark.parametrize(
    ("given", "says"),
    [("rank", "Say r= in"), ("lora_r", "Say r= in"), ("dropout", "Say lora_dropout= in")],
)
def test_other_words_for_an_argument(given: str, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        boosted(stack(), **{given: 1})


def test_no_targets_named() -> None:
    with pytest.raises(TypeError, match="'all-linear' is every linear map"):
        boosted(stack(), target_modules=None)


def test_the_root_has_a_name() -> None:
    with pytest.raises(ValueError, match="first 'Linear'") as caught:
        boosted(nn.Linear(4, 4).to(torch.float8_e4m3fn))
    assert "''" not in str(caught.value)


def test_a_group_of_frozen_weights_is_refused() -> None:
    model = stack()
    optimizer = boosted(model)
    optimizer.add_param_group({"params": [model.blocks[0].query.bias], "lr": 0.1})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match=r"first 'blocks\.0\.query\.bias'.*modules_to_save"):
        train(model, optimizer, batches(1))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_forward_mode() -> None:
    model = stack()
    x = batches(1)[0][0]
    optimizer = boosted(model, kappa=9)
    train(model, optimizer, batches(2))
    with forward_ad.dual_level():
        dual = model(forward_ad.make_dual(x, torch.ones_like(x)))
        tangent = forward_ad.unpack_dual(dual).tangent
    _, expected = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    assert torch.allclose(tangent, expected)


def test_threads_leave_the_precision_of_products_as_it_was() -> None:
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    models = [stack(dtype=torch.float32) for _ in range(2)]
    for model in models:
        boosted(model, layers_per_booster=None)
    x = batches(1, torch.float32)[0][0]

    def work(model: nn.Module) -> None:
        for _ in range(30):
            model(x).sum().backward()

    products.fp32_precision = "bf16"
    try:
        threads = [threading.Thread(target=work, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert products.fp32_precision == "bf16"
    finally:
        products.fp32_precision = "none"
        if products.fp32_precision != before:
            products.fp32_precision = before


@pytest.mark.parametrize("adapter", ["lora", "direft"])
def test_jagged_tensors(adapter: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)])
    x = torch.nested.nested_tensor([torch.ones(3, 8), torch.ones(5, 8)], layout=torch.jagged)
    optimizer = boosted(model, adapter=adapter, kappa=2)
    for _ in range(3):
        model(x).values().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    flat = torch.cat([model(part) for part in x.unbind()])
    assert torch.allclose(model(x).values(), flat, atol=1e-6)


def test_samplers_may_answer_with_other_integers() -> None:
    answers = (
        torch.tensor([2, 0]),
        [torch.tensor(2), torch.tensor(0)],
        torch.tensor([2, 0]).numpy(),
    )
    for answer in answers:
        optimizer = boosted(
            stack(), layers_per_booster=2, layer_sampler=lambda *_, answer=answer: answer
        )
        assert optimizer.active_layers == ("blocks.0", "blocks.2")


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning"
)
def test_a_quantised_copy_in_mid_run_holds_the_pending_booster() -> None:
    model = stack(dtype=torch.float32)
    optimizer = boosted(model, kappa=9, lr=0.1)
    train(model, optimizer, batches(4, torch.float32))
    x = batches(1, torch.float32)[0][0]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    finished = optimizer.finalize()
    plain = torch.ao.quantization.quantize_dynamic(finished, {nn.Linear}, dtype=torch.qint8)
    assert torch.allclose(quantised(x), plain(x), atol=1e-3)
