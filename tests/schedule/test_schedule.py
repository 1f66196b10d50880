"""When boosters end and what they draw, seen from outside: pure functions of (seed, t)."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from anatomy import same_values, values
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train

SAMPLERS = ["uniform", "cyclic", "window"]


def blocks(count: int) -> nn.Sequential:
    """Blocks as small as they get."""
    return nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.Tanh()) for _ in range(count)))


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    settings.setdefault("lora_alpha", None)
    return BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1, **settings)


def draws(
    num_layers: int, L_s: int | float | None, sampler: Any, seed: int, boosters: int
) -> list[list[int]]:
    """The layers that the first boosters draw, as indices in the model's order."""
    optimizer = boosted(
        blocks(num_layers), layers_per_booster=L_s, layer_sampler=sampler, seed=seed, kappa=None
    )
    order = list(dict.fromkeys(optimizer.targets.values()))
    drawn = []
    for t in range(boosters):
        assert optimizer.booster_index == t
        drawn.append([order.index(name) for name in optimizer.active_layers])
        optimizer.merge()
    return drawn


layers = st.integers(2, 9).flatmap(lambda L: st.tuples(st.just(L), st.integers(1, L)))
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(layers=layers, seed=seeds)
def test_draws_are_distinct_layers_and_repeatable(
    sampler: str, layers: tuple[int, int], seed: int
) -> None:
    L, L_s = layers
    drawn = draws(L, L_s, sampler, seed, 6)
    for indices in drawn:
        assert len(indices) == len(set(indices)) == L_s
        assert set(indices) <= set(range(L))
    torch.rand(3)  # the global generator has no part in it
    assert draws(L, L_s, sampler, seed, 6) == drawn


@given(layers=layers, seed=seeds)
def test_cyclic_draws_every_block_once_before_any_twice(layers: tuple[int, int], seed: int) -> None:
    L, L_s = layers
    count = Counter(dict.fromkeys(range(L), 0))
    for indices in draws(L, L_s, "cyclic", seed, 3 * L):
        count.update(indices)
        assert max(count.values()) - min(count.values()) <= 1


@given(seed=seeds)
def test_cyclic_takes_a_new_order_each_time_round(seed: int) -> None:
    drawn = draws(7, 1, "cyclic", seed, 28)
    rounds = {tuple(map(tuple, drawn[i : i + 7])) for i in range(0, 28, 7)}
    assert len(rounds) > 1


@given(layers=layers, seed=seeds)
def test_window_draws_neighbours(layers: tuple[int, int], seed: int) -> None:
    L, L_s = layers
    for indices in draws(L, L_s, "window", seed, 6):
        low = min(indices)
        assert sorted(indices) == list(range(low, low + L_s))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_block_is_drawn(sampler: str) -> None:
    assert {i for indices in draws(7, 3, sampler, 0, 60) for i in indices} == set(range(7))


def test_uniform_draws_every_subset_equally_often() -> None:
    """Ten subsets of two out of five layers, 600 draws: chi-square with nine degrees of freedom."""
    count = Counter(tuple(sorted(indices)) for indices in draws(5, 2, "uniform", 0, 600))
    assert len(count) == 10
    chi_square = sum((observed - 60) ** 2 / 60 for observed in count.values())
    assert chi_square < 27.9  # one in a thousand


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_and_boosters_differ(sampler: str) -> None:
    first, second = draws(9, 2, sampler, 0, 12), draws(9, 2, sampler, 1, 12)
    assert first != second
    assert len({tuple(indices) for indices in first}) > 3


@pytest.mark.parametrize(
    ("given_", "drawn"),
    [(1, 1), (3, 3), (4, 4), (8, 4), (1.0, 4), (0.5, 2), (0.75, 3), (0.01, 1), (None, 4)],
)
def test_layers_per_booster(given_: int | float | None, drawn: int) -> None:
    """An int is a number of layers, capped at all; a float is a share: 1 is not 1.0."""
    assert len(draws(4, given_, "uniform", 0, 1)[0]) == drawn


def test_default_draws_eight_layers_for_eight_steps() -> None:
    optimizer = boosted(blocks(12))
    assert len(optimizer.active_layers) == 8
    for step in range(17):
        assert (optimizer.booster_index, optimizer.booster_step) == divmod(step, 8)
        optimizer.model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kappa", [1, 2, 5])
def test_merges_at_multiples_of_kappa(kappa: int) -> None:
    model = stack()
    optimizer = boosted(model, kappa=kappa)
    merges: list[int] = []
    taken = 0
    optimizer.on_merge(lambda report: merges.append(taken))
    for x, y in batches(11):
        cross_entropy(model(x), y).backward()
        taken += 1
        optimizer.step()
        assert (optimizer.booster_index, optimizer.booster_step) == divmod(taken, kappa)
    assert merges == list(range(kappa, 12, kappa))


def inits(optimizer: BoostedLowRankOptimizer) -> dict[str, Tensor]:
    return {name: A.detach().clone() for name, (A, _) in optimizer.active_factors.items()}


def test_a_booster_begins_alike_however_it_is_reached() -> None:
    """Draw and init of booster t depend on neither kappa, the base, the data nor the weights."""
    first = stack(seed=0)
    trained = BoostedLowRankOptimizer(
        torch.optim.AdamW, first, lr=0.1, kappa=2, layers_per_booster=2, seed=7
    )
    second = boosted(stack(seed=1), kappa=None, layers_per_booster=2, seed=7)
    for t, (x, y) in enumerate(batches(6)):
        if t % 2 == 0:
            assert first is not second.model
            assert trained.active_layers == second.active_layers
            ours, theirs = inits(trained), inits(second)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            second.merge()
        cross_entropy(first(x), y).backward()
        trained.step()


def test_inits_differ_between_boosters_seeds_and_targets() -> None:
    seen = []
    for seed in (0, 1):
        optimizer = boosted(stack(depth=2), layers_per_booster=None, kappa=None, seed=seed)
        for _ in range(3):
            seen += list(inits(optimizer).values())
            optimizer.merge()
    rows = {tuple(A.flatten()[:5].tolist()) for A in seen}
    assert len(rows) == len(seen) == 2 * 3 * 12


@pytest.mark.parametrize("merge_precision", ["nearest", "stochastic", "residual"])
def test_the_global_generator_is_left_alone(merge_precision: str) -> None:
    """A user's dropout and shuffling come out the same with and without boosters."""
    before = torch.get_rng_state()
    optimizer = boosted(stack(dtype=torch.bfloat16), kappa=1, merge_precision=merge_precision)
    for x, y in batches(3, torch.bfloat16):
        cross_entropy(optimizer.model(x), y).backward()
        optimizer.step()
    optimizer.merge()
    optimizer.state_dict()
    optimizer.finalize()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("merge_precision", ["nearest", "stochastic", "residual"])
def test_two_runs_agree_bitwise(merge_precision: str) -> None:
    ends = []
    for _ in range(2):
        model = stack(dtype=torch.bfloat16)
        optimizer = BoostedLowRankOptimizer(
            torch.optim.AdamW, model, lr=0.05, kappa=2, merge_precision=merge_precision
        )
        for x, y in batches(7, torch.bfloat16):
            cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.rand(1)
        ends.append(optimizer.finalize().state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("merge_precision", ["nearest", "stochastic", "residual"])
def test_default_device_has_no_part_in_it(merge_precision: str, sampler: str) -> None:
    """Somebody's ``torch.set_default_device``; meta stands in for an accelerator."""
    ends = []
    for device in ("cpu", "meta"):
        model = stack(dtype=torch.bfloat16)
        data = batches(5, torch.bfloat16)
        with torch.device(device):
            optimizer = boosted(
                model,
                kappa=2,
                layers_per_booster=2,
                layer_sampler=sampler,
                merge_precision=merge_precision,
            )
            for x, y in data:
                cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            model.state_dict()
            optimizer.load_state_dict(optimizer.state_dict())
            ends.append(optimizer.finalize().state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_callable_sampler_is_asked_once_a_booster() -> None:
    asked = []

    def sampler(
        seed: int, booster_index: int, num_layers: int, layers_per_booster: int
    ) -> list[int]:
        asked.append((seed, booster_index, num_layers, layers_per_booster))
        return [(booster_index + i) % num_layers for i in range(layers_per_booster)]

    assert [sorted(indices) for indices in draws(4, 2, sampler, 5, 4)] == [
        [0, 1],
        [1, 2],
        [2, 3],
        [0, 3],
    ]
    assert sorted(set(asked)) == [(5, t, 4, 2) for t in range(5)]


WRONG: list[Any] = [
    [0],
    [0, 1, 2],
    [0, 0],
    [0, 3],
    [-1, 0],
    [0, 1.0],
    [0, "1"],
    [True, False],
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_draw(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"layer_sampler.*2 distinct"):
        boosted(blocks(3), layers_per_booster=2, layer_sampler=lambda *_: wrong)


@pytest.mark.parametrize("answer", [[99], None])
def test_wrong_draw_later_changes_nothing(answer: Any) -> None:
    """Neither weights nor factors; the booster is merged once, when the sampler is mended."""
    answers: dict[int, Any] = {0: [0], 1: answer}
    model = stack()
    optimizer = boosted(
        model, kappa=None, layers_per_booster=1, layer_sampler=lambda seed, t, *_: answers[t]
    )
    train(model, optimizer, batches(2))
    before = values(model)
    with pytest.raises(ValueError, match="layer_sampler must return 1 distinct"):
        optimizer.merge()
    assert same_values(model, before)
    assert (optimizer.booster_index, optimizer.booster_step) == (0, 2)
    x = batches(1)[0][0]
    probe = model(x).detach()
    answers[1] = [1]
    optimizer.merge()
    torch.testing.assert_close(model(x), probe, rtol=1e-12, atol=1e-12)
    assert (optimizer.booster_index, optimizer.active_layers) == (1, ("blocks.1",))


def test_kappa_none_never_merges() -> None:
    model = stack()
    optimizer = boosted(model, kappa=None)
    reports = []
    optimizer.on_merge(reports.append)
    for x, y in batches(40):
        cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (optimizer.booster_index, optimizer.booster_step, reports) == (0, 40, [])
    optimizer.finalize()
    assert [(report.booster_index, report.steps) for report in reports] == [(0, 40)]
