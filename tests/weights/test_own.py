"""What is written is what is computed with: weights that stop being their modules' own."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from torch_xgb import BoostedLowRankOptimizer

Change = Callable[[nn.Module], object]


def small(blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(blocks)])


def boosted(model: nn.Module, **settings: object) -> BoostedLowRankOptimizer:
    given = {"kappa": 4, "layers_per_booster": None, "lr": 0.02, **settings}
    return BoostedLowRankOptimizer(torch.optim.AdamW, model, **given)


def go(model: nn.Module, optimizer: BoostedLowRankOptimizer, steps: int) -> None:
    for i in range(steps):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(i))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


class _Twice(nn.Module):
    def forward(self, W: torch.Tensor) -> torch.Tensor:
        return 2 * W


def _weight_norm(model: nn.Module) -> None:
    torch.nn.utils.weight_norm(model[1][0])


PUT: dict[str, tuple[Change, Change]] = {
    "prune": (
        lambda m: prune.l1_unstructured(m[1][0], "weight", 0.5),
        lambda m: prune.remove(m[1][0], "weight"),
    ),
    "weight_norm": (
        lambda m: parametrizations.weight_norm(m[1][0]),
        lambda m: parametrize.remove_parametrizations(m[1][0], "weight"),
    ),
    "spectral_norm": (
        lambda m: parametrizations.spectral_norm(m[1][0]),
        lambda m: parametrize.remove_parametrizations(m[1][0], "weight"),
    ),
    "old weight_norm": (_weight_norm, lambda m: torch.nn.utils.remove_weight_norm(m[1][0])),
    "own": (
        lambda m: parametrize.register_parametrization(m[1][0], "weight", _Twice(), unsafe=True),
        lambda m: parametrize.remove_parametrizations(m[1][0], "weight"),
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*were written to by something else:UserWarning")
@pytest.mark.parametrize("put", PUT)
def test_a_weight_that_is_computed_from_others_is_refused_until_it_is_taken_off(put: str) -> None:
    on, off = PUT[put]
    model = small()
    optimizer = boosted(model)
    go(model, optimizer, 2)
    on(model)
    x = torch.ones(2, 8)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    calls = [
        optimizer.step,
        optimizer.merge,
        optimizer.finalize,
        optimizer.state_dict,
        model.state_dict,
        lambda: copy.deepcopy(model),
    ]
    model(x).square().mean().backward()
    for call in calls:
        with pytest.raises(RuntimeError, match=r"1\.0\.weight.*computed from.*exclude_modules"):
            call()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    off(model)
    output = model(x)
    optimizer.zero_grad()
    assert torch.allclose(optimizer.finalize()(x), output, rtol=1e-5, atol=1e-6)
    assert all(p.requires_grad for p in model.parameters())


def test_finalize_gives_requires_grad_back_under_a_parametrisation() -> None:
    model = small()
    optimizer = boosted(model)
    parametrizations.weight_norm(model[1][0])
    prune.l1_unstructured(model[2][0], "weight", 0.5)
    assert all(p.requires_grad for p in optimizer.finalize().parameters())


def _replace(model: nn.Module) -> None:
    model[1][0] = nn.Linear(8, 8)


def _tie(model: nn.Module) -> None:
    model[1][0].weight = model[0][0].weight


def _tie_beside(model: nn.Module) -> None:
    model[2][1] = nn.Linear(8, 8)
    model[2][1].weight = model[0][0].weight


def _alias(model: nn.Module) -> None:
    model[1][0].weight.data = model[0][0].weight.data


def _integers(model: nn.Module) -> None:
    weight = torch.zeros(8, 8, dtype=torch.int8)
    model[1][0].weight = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_replace, "taken out of the model, or replaced"),
        (_tie, "is another weight too"),
        (_tie_beside, r"is tied to '2\.1\.weight' too"),
        (_alias, "shares its memory"),
        (_integers, "torch.int8"),
    ],
)
def test_a_weight_swapped_or_shared_meanwhile_is_refused_at_the_merge(
    change: Change, why: str
) -> None:
    model = small()
    optimizer = boosted(model)
    go(model, optimizer, 2)
    change(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match=rf"\.0\.weight'.*{why}"):
        optimizer.merge()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    optimizer.finalize(discard=True)


def test_a_module_replaced_is_named_before_a_state_is_saved_that_no_model_fits() -> None:
    model = small()
    optimizer = boosted(model, layers_per_booster=1, layer_sampler="cyclic")
    go(model, optimizer, 2)
    (drawn,) = optimizer.active_layers
    other = (int(drawn) + 1) % 3
    model[other][0] = nn.Linear(8, 8)
    with pytest.raises(RuntimeError, match=rf"'{other}\.0\.weight'.*replaced"):
        optimizer.state_dict()
    optimizer.finalize()


def test_a_drawn_weight_tied_to_one_that_is_not_drawn_is_refused() -> None:
    model = small()
    optimizer = boosted(model, layers_per_booster=1, layer_sampler="cyclic")
    go(model, optimizer, 2)
    (drawn,) = optimizer.active_layers
    other = (int(drawn) + 1) % 3
    model[other][0].weight = model[int(drawn)][0].weight
    with pytest.raises(RuntimeError, match=f"is tied to '{other}.0.weight' too"):
        go(model, optimizer, 2)
    model[other][0].weight = nn.Parameter(torch.zeros(8, 8), requires_grad=False)
    optimizer.merge()


def _complex(model: nn.Module) -> None:
    model[1][0] = nn.Linear(8, 8, dtype=torch.complex64)


def _expanded(model: nn.Module) -> None:
    model[1][0].weight = nn.Parameter(torch.ones(8, 1).expand(8, 8))


@pytest.mark.parametrize(
    ("change", "why"),
    [(_complex, "complex64"), (_expanded, "is expanded"), (_alias, "shares its memory with")],
)
def test_a_weight_that_cannot_be_added_to_is_refused_at_construction(
    change: Change, why: str
) -> None:
    model = small()
    change(model)
    with pytest.raises(ValueError, match=why):
        boosted(model)
    assert all(p.requires_grad for p in model.parameters())


def test_disjoint_views_of_one_tensor_are_weights_of_their_own() -> None:
    model, fused = small(), torch.randn(8, 24)
    for i, block in enumerate(model):
        block[0].weight = nn.Parameter(fused[:, 8 * i : 8 * i + 8])  # interleaved, nothing shared
    optimizer = boosted(model)
    go(model, optimizer, 5)
    output = model(torch.ones(2, 8))
    assert torch.allclose(optimizer.finalize()(torch.ones(2, 8)), output, rtol=1e-5, atol=1e-6)
