"""With one booster over every layer the method is LoRA: the same trajectory as PEFT's."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from bases import BASES
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer
from zoo import ZOO

TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def lora(model: nn.Module, optimizer: BoostedLowRankOptimizer, **config: Any) -> nn.Module:
    """PEFT's model with the A that the optimizer drew."""
    peft_model = get_peft_model(
        model, LoraConfig(target_modules=list(optimizer.active_factors), **config)
    )
    layers = dict(peft_model.base_model.model.named_modules())
    with torch.no_grad():
        for name, (A, B) in optimizer.active_factors.items():
            assert layers[name].lora_A["default"].weight.shape == A.shape
            layers[name].lora_A["default"].weight.copy_(A)
            assert torch.equal(layers[name].lora_B["default"].weight, B)
    return peft_model


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("r", "lora_alpha"), [(1, 1), (4, 8)])
@pytest.mark.parametrize("base", ["sgd-momentum", "adamw", "adafactor", "adagrad"])
def test_equals_lora(base: str, r: int, lora_alpha: int, kind: str) -> None:
    optimizer_class, kwargs = BASES[base]
    model, twin = stack(kind=kind), stack(kind=kind)
    ours = BoostedLowRankOptimizer(
        optimizer_class,
        model,
        r=r,
        lora_alpha=lora_alpha,
        kappa=None,
        layers_per_booster=None,
        **kwargs,
    )
    peft_model = lora(twin, ours, r=r, lora_alpha=lora_alpha, fan_in_fan_out=kind == "conv1d")
    theirs = optimizer_class(trainable(peft_model), **kwargs)
    for x, y in batches(12):
        losses = []
        for m, optimizer in ((model, ours), (peft_model, theirs)):
            loss = cross_entropy(m(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(m.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    merged = peft_model.merge_and_unload().state_dict()
    for name, tensor in ours.finalize().state_dict().items():
        torch.testing.assert_close(tensor, merged[name], **TIGHT)


def test_equals_lora_with_dropout() -> None:
    """The same inputs are dropped when the generator stands at the same place."""
    model, twin = stack(), stack()
    settings = {"kappa": None, "layers_per_booster": None, "lora_alpha": 1}
    ours = BoostedLowRankOptimizer(torch.optim.AdamW, model, lora_dropout=0.4, lr=0.02, **settings)
    peft_model = lora(twin, ours, r=1, lora_alpha=1, lora_dropout=0.4).train()
    theirs = torch.optim.AdamW(trainable(peft_model), lr=0.02)
    for step, (x, y) in enumerate(batches(8)):
        losses = []
        for m, optimizer in ((model, ours), (peft_model, theirs)):
            torch.manual_seed(step)
            loss = cross_entropy(m(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("name", ["bert", "gpt2-classification", "llama", "t5", "vit"])
def test_equals_lora_on_transformers(name: str) -> None:
    """With the task head trained beside it, as PEFT's modules_to_save does."""
    species = ZOO[name]
    model = species.build().double().eval()
    twin = copy.deepcopy(model)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in species.batch().items()}
    ours = BoostedLowRankOptimizer(
        torch.optim.AdamW, model, r=2, lora_alpha=4, kappa=None, layers_per_booster=None, lr=0.01
    )
    gpt2 = name.startswith("gpt2")
    peft_model = lora(
        twin, ours, r=2, lora_alpha=4, modules_to_save=species.saved or None, fan_in_fan_out=gpt2
    ).eval()
    theirs = torch.optim.AdamW(trainable(peft_model), lr=0.01)
    assert sum(p.numel() for p in trainable(peft_model)) == sum(p.numel() for p in trainable(model))
    losses: list[list[float]] = [[], []]
    for _ in range(6):
        for m, optimizer, log in ((model, ours, losses[0]), (peft_model, theirs, losses[1])):
            loss = m(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]
    merged = peft_model.merge_and_unload()(**batch).logits
    torch.testing.assert_close(ours.finalize()(**batch).logits, merged, rtol=1e-8, atol=1e-9)


def test_init_is_drawn_from_the_same_distribution() -> None:
    """Bounds and spread of A, not its values: PEFT draws from the global generator."""
    model = stack(hiddens=(60, 60))
    ours = BoostedLowRankOptimizer(torch.optim.SGD, model, r=6, layers_per_booster=None, lr=0.1)
    theirs = get_peft_model(stack(hiddens=(60, 60)), LoraConfig(r=6, target_modules=["down"]))
    bound = 60**-0.5
    for i in range(2):
        A = ours.active_factors[f"blocks.{i}.down"][0].detach()
        twin = theirs.base_model.model.blocks[i].down.lora_A["default"].weight.detach()
        for values in (A, twin):
            assert values.abs().max() <= bound
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1)
