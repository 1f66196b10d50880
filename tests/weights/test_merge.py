"""W ← W + α·s·B A under every precision policy, watched on the weights themselves."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tiny import KINDS, conv1d
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.formulas.rounding import round_stochastically
from torch_xgb.formulas.streams import Field

LOW = [torch.bfloat16, torch.float16]
POLICIES = ["nearest", "stochastic", "residual"]


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    settings = {"kappa": None, "layers_per_booster": None, **settings}
    settings.setdefault("lora_alpha", None)
    return BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1, **settings)


def linear(rows: int, columns: int, dtype: torch.dtype, kind: str = "linear") -> nn.Sequential:
    return nn.Sequential(KINDS[kind](columns, rows)).to(dtype)


def matrix(model: nn.Module) -> Tensor:
    weight = model[0].weight.detach()
    return weight.clone() if isinstance(model[0], nn.Linear) else weight.T.clone()


def put(optimizer: BoostedLowRankOptimizer, A: Tensor, B: Tensor) -> None:
    """Set the pair of the only target."""
    (pair,) = optimizer.active_factors.values()
    with torch.no_grad():
        for factor, value in zip(pair, (A, B), strict=True):
            factor.copy_(value)


def neighbours(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The two values of ``dtype`` around each entry, both equal to it where it is one itself."""
    near = exact.to(dtype)
    infinity = torch.full_like(near, torch.inf)
    below = torch.where(near.double() > exact, torch.nextafter(near, -infinity), near)
    above = torch.where(near.double() < exact, torch.nextafter(near, infinity), near)
    return below, above


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    r=st.integers(1, 4),
    kind=st.sampled_from(sorted(KINDS)),
    alpha=st.floats(0.1, 32),
    seed=st.integers(0, 2**31),
)
def test_a_merge_keeps_the_function_in_float32(
    rows: int, columns: int, r: int, kind: str, alpha: float, seed: int
) -> None:
    r = min(r, rows, columns)
    torch.manual_seed(seed)
    model = linear(rows, columns, torch.float32, kind)
    optimizer = boosted(model, r=r, lora_alpha=alpha)
    put(optimizer, torch.randn(r, columns) / columns**0.5, torch.randn(rows, r))
    x = torch.randn(5, columns)
    before, W = model(x).detach(), matrix(model)
    optimizer.merge()
    scale = before.abs().max()
    assert ((model(x) - before).abs() <= 1e-5 * scale).all()
    # That something was merged at all: a pair left in place would keep the function too.
    assert not torch.equal(matrix(model), W)
    assert all(pair[1].count_nonzero() == 0 for pair in optimizer.active_factors.values())


@pytest.mark.parametrize("policy", ["auto", *POLICIES])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
def test_a_merge_is_one_rounding_of_the_sum(dtype: torch.dtype, kind: str, policy: str) -> None:
    model = linear(60, 50, dtype, kind)
    optimizer = boosted(model, r=2, lora_alpha=3.0, shrinkage=0.5, merge_precision=policy)
    W, A, B = matrix(model), torch.randn(2, 50) / 7, torch.randn(60, 2) / 20
    put(optimizer, A, B)
    exact = W.double() + 0.5 * 1.5 * B.double() @ A.double()
    optimizer.merge()
    after = matrix(model)
    assert after.dtype == dtype
    if dtype in LOW:
        below, above = neighbours(exact, dtype)
        # The sum is known to float32's precision: near a value of dtype either side will do.
        fuzzy = ((exact.to(dtype).double() - exact).abs() < 1e-6 * exact.abs()) | (
            exact.abs() < 1e-4
        )
        assert ((after == below) | (after == above) | fuzzy).all()
        if policy == "nearest":
            tie = ((below.double() + above.double()) / 2 - exact).abs() < 1e-6 * exact.abs()
            assert ((after == exact.to(dtype)) | fuzzy | tie).all()
    else:
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(after.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@given(seed=st.integers(0, 2**31))
def test_stochastic_rounding_takes_a_neighbour(dtype: torch.dtype, seed: int) -> None:
    """Over updates of any size, exponents crossed and zeros included."""
    generator = torch.Generator().manual_seed(seed)
    model = linear(24, 24, dtype)
    sizes = 10.0 ** torch.randint(-3, 1, (24, 24), generator=generator)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(24, 24, generator=generator) * sizes)
        model[0].weight[0].zero_()
    optimizer = boosted(model, merge_precision="stochastic", seed=seed)
    A, B = torch.randn(1, 24, generator=generator), torch.randn(24, 1, generator=generator) / 30
    W = matrix(model)
    put(optimizer, A, B)
    optimizer.merge()
    delta = B @ A
    exact = (W.float() + delta).double()  # of one product and one sum in float32
    below, above = neighbours(exact, dtype)
    after = matrix(model)
    assert ((after == below) | (after == above)).all()


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_stochastic_rounding_leaves_the_unusual_as_it_is(dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    largest = torch.finfo(dtype).max
    exact = torch.tensor([0.0, -0.0, inf, -inf, nan, -nan, largest, -largest])
    # A NaN of all ones, which is what some devices make.
    exact = torch.cat(
        [exact, torch.tensor([-1, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)]
    )
    for seed in range(20):
        bits = Field.of(seed, 0, "a test").bits(slice(0, 1), slice(0, len(exact)), exact.device)[0]
        rounded = round_stochastically(exact, dtype, bits).to(dtype)
        torch.testing.assert_close(rounded, exact.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype) -> None:
    """Rounded up as often as the distance says: a binomial count for each of several fractions."""
    eps = torch.finfo(dtype).eps
    fractions = torch.tensor([0.0, 1 / 16, 1 / 4, 0.5, 7 / 8])
    count = 40000
    for sign in (1, -1):
        model = linear(len(fractions), count, dtype)
        nn.init.constant_(model[0].weight, sign)
        optimizer = boosted(model, merge_precision="stochastic", seed=3)
        put(optimizer, torch.ones(1, count), sign * eps * fractions[:, None])
        optimizer.merge()
        moved = matrix(model) != sign
        assert set(matrix(model).unique().tolist()) == {sign, sign * (1 + eps)}
        share = moved.float().mean(1)
        error = (fractions * (1 - fractions) / count).sqrt()
        assert ((share - fractions).abs() <= 4.5 * error).all()


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_stochastic_rounding_draws_anew_for_every_booster_and_target(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    patterns = []
    for seed in (0, 1):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to(dtype)
        optimizer = boosted(model, merge_precision="stochastic", seed=seed)
        for _ in range(2):
            ones = {name: torch.ones_like(W) for name, W in model.state_dict().items()}
            model.load_state_dict(ones)
            with torch.no_grad():
                for A, B in optimizer.active_factors.values():
                    A.fill_(1.0)
                    B.fill_(eps / 2)
            optimizer.merge()
            patterns += [tuple((m.weight != 1).flatten().tolist()) for m in model]
    assert len(set(patterns)) == len(patterns) == 8
    assert all(0.4 < sum(p) / len(p) < 0.6 for p in patterns)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual_device", [None, "cpu"])
@pytest.mark.parametrize("policy", ["residual", "auto"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_residual_tracks_the_float32_sum(
    dtype: torch.dtype, policy: str, residual_device: str | None, kind: str
) -> None:
    """Two hundred updates far below the weight's spacing arrive, within one spacing always."""
    model = linear(30, 20, dtype, kind)
    optimizer = boosted(model, merge_precision=policy, residual_device=residual_device)
    exact, step = matrix(model).double(), torch.finfo(dtype).eps / 50
    generator = torch.Generator().manual_seed(0)
    direction = torch.rand(30, 1, generator=generator), torch.rand(1, 20, generator=generator)
    start, highest = matrix(model), exact.abs()
    for _ in range(200):
        B = direction[0] + 0.1 * torch.rand(30, 1, generator=generator)
        put(optimizer, direction[1] * step, B)
        exact += (B @ (direction[1] * step)).double()
        optimizer.merge()
        highest = torch.maximum(highest, exact.abs())
        # A spacing for the weight, and what a residual of the same dtype could not hold.
        bound = 1.06 * torch.finfo(dtype).eps * highest + 1e-6
        assert ((matrix(model).double() - exact).abs() <= bound).all()
    assert (matrix(model) != start).float().mean() > 0.5


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_under_a_residual_weights_hold_the_update_on_average(dtype: torch.dtype) -> None:
    """Long before it adds up to half a spacing; and an entry once rounded up stays there."""
    count, eps = 40000, torch.finfo(dtype).eps
    model = linear(1, count, dtype)
    nn.init.ones_(model[0].weight)
    optimizer = boosted(model, merge_precision="residual", seed=3)
    moved = torch.zeros(1, count, dtype=torch.bool)
    for merges in range(1, 8):
        put(optimizer, torch.full((1, count), eps / 10), torch.ones(1, 1))
        optimizer.merge()
        before, moved = moved, matrix(model) != 1
        assert set(matrix(model).unique().tolist()) == {1, 1 + eps}
        assert (moved | ~before).all()
        share = merges / 10
        # A 128th on either side stays where it is, so that what is taken back returns.
        assert (
            abs(moved.float().mean() - share) < 1 / 128 + 4.5 * (share * (1 - share) / count) ** 0.5
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_under_a_residual_no_change_changes_next_to_nothing(dtype: torch.dtype, kind: str) -> None:
    """Nor does a change that the next booster takes back, in weights a residual was added to.

    But for entries whose residual, rounded, passes their threshold.
    """
    torch.manual_seed(0)
    model = linear(150, 80, dtype, kind)
    start = matrix(model)
    optimizer = boosted(model, merge_precision="residual")
    A, B = torch.randn(1, 80) * 1e-3, torch.randn(150, 1) * 1e-2
    put(optimizer, A, B)
    optimizer.merge()
    after = matrix(model)
    assert float((after != start).float().mean()) > 0.01
    for _ in range(3):
        put(optimizer, A, torch.zeros_like(B))
        optimizer.merge()
        assert float((matrix(model) != after).float().mean()) < 0.003
    put(optimizer, A, -B)
    optimizer.merge()
    assert float((matrix(model) != start).float().mean()) < 0.003


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_nearest_forgets_small_updates(dtype: torch.dtype) -> None:
    """What the residual is for; if this fails the test above shows nothing."""
    model = linear(30, 20, dtype)
    nn.init.ones_(model[0].weight)
    optimizer = boosted(model, merge_precision="nearest")
    for _ in range(200):
        put(optimizer, torch.full((1, 20), torch.finfo(dtype).eps / 50), torch.ones(30, 1))
        optimizer.merge()
    assert (matrix(model) == 1).all()


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_stochastic_drifts_at_the_right_speed(dtype: torch.dtype) -> None:
    model = linear(100, 100, dtype)
    nn.init.ones_(model[0].weight)
    optimizer = boosted(model, merge_precision="stochastic")
    step = torch.finfo(dtype).eps / 10
    for _ in range(50):
        put(optimizer, torch.full((1, 100), step), torch.ones(100, 1))
        optimizer.merge()
    mean = matrix(model).double().mean() - 1
    assert abs(mean / (50 * step) - 1) < 0.05


@pytest.mark.parametrize(
    ("policy", "lost"), [("nearest", 1.0), ("residual", 0.0), ("auto", 0.0)], ids=str
)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_report_tells_what_rounding_lost(dtype: torch.dtype, policy: str, lost: float) -> None:
    model = linear(8, 8, dtype)
    nn.init.ones_(model[0].weight)
    optimizer = boosted(model, merge_precision=policy)
    reports = []
    optimizer.on_merge(reports.append)
    put(optimizer, torch.full((1, 8), torch.finfo(dtype).eps / 8), torch.ones(8, 1))
    optimizer.merge()
    assert reports[0].lost.keys() == {"0"}
    assert reports[0].lost["0"] == pytest.approx(lost, abs=1e-2)


def test_report_tells_nothing_lost_of_a_large_update() -> None:
    model = linear(8, 8, torch.bfloat16)
    nn.init.ones_(model[0].weight)
    optimizer = boosted(model, merge_precision="nearest")
    reports = []
    optimizer.on_merge(reports.append)
    put(optimizer, torch.full((1, 8), 0.5), torch.ones(8, 1))
    optimizer.merge()
    assert reports[0].lost["0"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 3])
def test_report(kind: str, r: int) -> None:
    """The norm of what was merged, with the shrinkage and the scaling in it."""
    model = nn.Sequential(
        *(nn.Sequential(KINDS[kind](5, 7), KINDS[kind](7, 5)) for _ in range(4))
    ).double()
    optimizer = boosted(
        model, r=r, lora_alpha=4.0, layers_per_booster=2, shrinkage=lambda t: 0.5 / (t + 1), kappa=2
    )
    reports = []
    optimizer.on_merge(reports.append)
    for t in range(3):
        drawn, names = optimizer.active_layers, set(optimizer.active_factors)
        for step in range(2):
            before = {n: model.get_submodule(n).weight.detach().clone() for n in names}
            assert len(reports) == t
            model(torch.randn(3, 5, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            del step
        report = reports[t]
        assert (report.booster_index, tuple(report.layers), report.steps, report.rank) == (
            t,
            drawn,
            2,
            r,
        )
        assert set(report.update_norm) == names
        for name, norm in report.update_norm.items():
            moved = model.get_submodule(name).weight - before[name]
            assert norm == pytest.approx(moved.norm().item(), rel=1e-9)
            assert norm > 0


def test_listeners_can_be_removed() -> None:
    optimizer = boosted(linear(3, 3, torch.float32))
    calls = []
    first = optimizer.on_merge(lambda report: calls.append(("first", report.booster_index)))
    optimizer.on_merge(lambda report: calls.append(("second", report.booster_index)))
    optimizer.merge()
    first.remove()
    optimizer.merge()
    assert calls == [("first", 0), ("second", 0), ("second", 1)]


def test_a_listener_sees_the_next_booster() -> None:
    """Called after the merge: t has moved on and the next booster is in place."""
    optimizer = boosted(linear(3, 3, torch.float32))
    seen = []
    optimizer.on_merge(lambda report: seen.append((report.booster_index, optimizer.booster_index)))
    optimizer.merge()
    assert seen == [(0, 1)]


@pytest.mark.parametrize("policy", ["auto", *POLICIES])
def test_large_weights_are_merged_like_small_ones(policy: str) -> None:
    """Low-precision merges go through a weight in pieces."""
    model = linear(2100, 2100, torch.bfloat16)
    W = matrix(model)
    optimizer = boosted(model, merge_precision=policy)
    A, B = torch.randn(1, 2100), torch.randn(2100, 1) / 50
    put(optimizer, A, B)
    optimizer.merge()
    exact = W.float() + B @ A
    spacing = torch.finfo(torch.bfloat16).eps * torch.maximum(exact.abs(), W.float().abs())
    bound = 0.51 if policy == "nearest" else 1.01
    assert ((matrix(model).float() - exact).abs() <= bound * spacing + 1e-6).all()


def test_a_diverged_booster_is_not_merged() -> None:
    """The weights outlive it; the error says what happened."""
    model = linear(3, 3, torch.float32)
    W = matrix(model)
    optimizer = boosted(model)
    put(optimizer, torch.ones(1, 3), torch.full((3, 1), torch.inf))
    with pytest.raises(RuntimeError, match="finite"):
        optimizer.merge()
    assert torch.equal(matrix(model), W)


def test_conv1d_keeps_its_layout() -> None:
    model = nn.Sequential(conv1d(4, 6)).double()
    weight = model[0].weight
    optimizer = boosted(model)
    put(optimizer, torch.randn(1, 4), torch.randn(6, 1))
    optimizer.merge()
    assert model[0].weight is weight
    assert weight.shape == (4, 6) and weight.is_contiguous()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_weight_stored_transposed(policy: str) -> None:
    """Memory laid out the other way round, as after tying to a transpose."""
    for dtype in (torch.bfloat16, torch.float32):
        model = linear(6, 4, dtype)
        model[0].weight = nn.Parameter(torch.randn(4, 6).to(dtype).T)
        W = matrix(model)
        optimizer = boosted(model, merge_precision=policy)
        A, B = torch.randn(1, 4), torch.randn(6, 1)
        put(optimizer, A, B)
        optimizer.merge()
        exact = W.double() + (B @ A).double()
        spacing = torch.finfo(dtype).eps * exact.abs()
        assert ((matrix(model).double() - exact).abs() <= 1.01 * spacing + 1e-6).all()
