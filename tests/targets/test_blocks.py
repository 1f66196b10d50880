"""The blocks of real architectures, found by structure, and two boosters trained on each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anatomy import anatomy, differing, values
from torch_xgb import BoostedLowRankOptimizer
from zoo import ZOO, numbered


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    given = {"lr": 0.01, "lora_alpha": None, **settings}
    return BoostedLowRankOptimizer(torch.optim.AdamW, model, **given)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_and_targets(name: str) -> None:
    species = ZOO[name]
    model = species.build()
    optimizer = boosted(
        model, layers_per_booster=None, target_parameters=species.parameters or None
    )
    assert optimizer.targets == species.expected()
    assert list(dict.fromkeys(optimizer.targets.values())) == species.blocks
    assert list(optimizer.active_layers) == species.blocks
    saved = {id(p) for group in optimizer.param_groups[1:] for p in group["params"]}
    heads = {id(p) for head in species.saved for p in model.get_submodule(head).parameters()}
    assert saved == heads


@pytest.mark.parametrize("name", ZOO)
def test_training(name: str) -> None:
    """The loss falls, the saved weights score as the model does, and the end is a plain model."""
    species = ZOO[name]
    model, batch = (
        species.build().eval(),
        species.batch(),
    )  # without dropout, so that losses compare
    before, keys, start = anatomy(model), list(model.state_dict()), values(model)
    # Without gradients: torch.matmul takes other ways for weights that require one.
    with torch.no_grad():
        output = model(**batch)
    left_out, experts = species.bypassed or None, species.parameters or None
    optimizer = boosted(
        model,
        kappa=4,
        layers_per_booster=2,
        exclude_modules=left_out,
        target_parameters=experts,
    )
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, output.logits)
    losses = [output.loss.item()]
    for step in range(10):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
        if step == 6:
            check_saved(species.build().eval(), model, batch)
    assert optimizer.booster_index == 2
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < losses[0]
    pending = model(**batch).logits
    assert optimizer.finalize() is model
    torch.testing.assert_close(model(**batch).logits, pending, rtol=1e-4, atol=1e-5)
    assert anatomy(model) == before
    assert list(model.state_dict()) == keys
    changed = differing(values(model), start)
    allowed = {name for t in species.expected() for name in (t, f"{t}.weight")}
    assert {name for name in changed if not name.startswith(tuple(species.saved))} <= allowed
    assert changed & allowed


@pytest.mark.parametrize("name", [name for name, species in ZOO.items() if species.bypassed])
def test_bypassed_maps_are_an_error_with_their_names(name: str) -> None:
    species = ZOO[name]
    model = species.build()
    optimizer = boosted(model, layers_per_booster=None)
    before = values(model)
    model(**species.batch()).loss.backward()
    with pytest.raises(RuntimeError, match="exclude_modules") as error:
        optimizer.step()
    assert all(bypassed in str(error.value) for bypassed in species.bypassed)
    assert differing(values(model), before) == set()


def check_saved(plain: nn.Module, model: nn.Module, batch: dict[str, Tensor]) -> None:
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


class Step(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Other(Step):
    """Another class in the same stack."""


class Handmade(nn.Module):
    """Blocks in a ModuleList under a name of the user's own."""

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.entrance = nn.Linear(4, 4).requires_grad_(False)
        self.corridor = nn.ModuleList(steps)
        self.exit = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entrance(x)
        for step in self.corridor:
            x = step(x)
        return self.exit(x)


class Attributes(nn.Module):
    """Blocks as plain attributes: nothing repeats in a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Experts(nn.Module):
    """A block whose larger part is a list of experts: the block is drawn, not an expert."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.experts = nn.ModuleList(Step() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.query(x) * self.key(x) + self.value(x)
        return sum(expert(x) for expert in self.experts) / 2


def sequential_blocks() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 4).requires_grad_(False),
        *(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)),
        nn.Linear(4, 2),
    )


class Numbered(nn.Module):
    """Blocks as numbered attributes, in a dict, and in a list inside a row of others."""

    def __init__(self) -> None:
        super().__init__()
        self.block_0, self.block_1 = Step(), Step()
        self.named = nn.ModuleDict({f"layer{i}": Step() for i in range(2)})
        self.row = nn.Sequential(nn.ModuleDict({"inner": nn.ModuleList([Step()])}), Step(), Step())
        self.exit = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(self.block_0(x))
        for block in (*self.named.values(), *self.row[0]["inner"], *self.row[1:]):
            x = block(x)
        return self.exit(x)


STEP = ["first", "second"]
HANDMADE: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "module-list": (
        lambda: Handmade([Step() for _ in range(3)]),
        {f"{b}.{t}": b for b in numbered("corridor") for t in STEP},
    ),
    "mixed-classes": (
        lambda: Handmade([Step(), Other(), Step(), Other()]),
        {f"{b}.{t}": b for b in numbered("corridor", 4) for t in STEP},
    ),
    "each-class-once": (
        lambda: Handmade([Step(), Other()]),
        {f"{b}.{t}": b for b in numbered("corridor", 2) for t in STEP},
    ),
    "one-block": (
        lambda: Handmade([Step()]),
        {"corridor.0.first": "corridor.0", "corridor.0.second": "corridor.0"},
    ),
    "sequential-root": (sequential_blocks, {f"{i}.0": f"{i}" for i in (1, 2, 3)}),
    "module-list-of-linears": (
        lambda: Handmade([nn.Linear(4, 4) for _ in range(3)]),
        {n: n for n in ["entrance", *numbered("corridor"), "exit"]},
    ),
    "numbered": (
        Numbered,
        {
            f"{b}.{t}": b
            for b in ["block_0", "block_1", "named.layer0", "named.layer1", "row.0.inner.0"]
            + ["row.1", "row.2"]
            for t in STEP
        },
    ),
    "no-blocks": (Attributes, {name: name for name in "abc"}),
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
        ),
        {name: name for name in "024"},
    ),
    "experts": (
        lambda: Handmade([Experts() for _ in range(3)]),
        {
            f"{b}.{t}": b
            for b in numbered("corridor")
            for t in ["query", "key", "value", *(f"experts.{i}.{s}" for i in (0, 1) for s in STEP)]
        },
    ),
    "stages": (
        lambda: nn.Sequential(
            nn.Sequential(Step(), Step()), nn.Sequential(Step(), Step(), Step()), nn.Linear(4, 2)
        ),
        {f"{b}.{t}": b for b in [*numbered("0", 2), *numbered("1")] for t in STEP},
    ),
}


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade(name: str) -> None:
    build, expected = HANDMADE[name]
    model = build().double()
    before = anatomy(model)
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(2, (16,))
    optimizer = boosted(model, kappa=5, layers_per_booster=2, lr=0.05)
    assert optimizer.targets == expected
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert optimizer.booster_index == 4
    assert losses[-1] < losses[0]
    optimizer.finalize()
    assert anatomy(model) == before


def test_blocks_of_ten_and_more_keep_their_order() -> None:
    """By number, not by name: layer 10 comes after layer 9."""
    model = Handmade([Step() for _ in range(12)])
    optimizer = boosted(model, layers_per_booster=2, layer_sampler=lambda *_: [2, 10])
    assert set(optimizer.active_layers) == {"corridor.2", "corridor.10"}
    assert list(dict.fromkeys(optimizer.targets.values())) == numbered("corridor", 12)


def test_experts_without_tokens() -> None:
    """A mixture that routes every token to one expert: the other one's factors rest."""

    class Switch(Experts):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.query(x) * self.key(x) + self.value(x)
            return self.experts[0](x)

    for unused in ("error", "skip"):
        model = Handmade([Switch() for _ in range(2)])
        optimizer = boosted(model, unused=unused, layers_per_booster=1, kappa=2)
        for _ in range(4):
            model(torch.randn(3, 4)).square().sum().backward()
            if unused == "error":
                with pytest.raises(RuntimeError, match=r"experts\.1\.(first|second)"):
                    optimizer.step()
                break
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.booster_index == (2 if unused == "skip" else 0)
