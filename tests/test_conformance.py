"""One table, base × r × kappa × layer kind × dtype, and the same assertions for every row."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from anatomy import anatomy, differing
from bases import BASES
from reference import Trace, boost
from tiny import as_matrices, batches, stack
from torch_xgb import BoostedLowRankOptimizer

STEPS = 7
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
# Signs of rounding errors decide whole steps, and Newton-Schulz iterates in bfloat16.
UNSTABLE_IN_FLOAT32 = {"rprop", "muon"}


class Run:
    """A training run watched from outside at every step."""

    def __init__(self, base: str, r: int, kappa: int | None, kind: str, dtype: torch.dtype) -> None:
        self.optimizer_class, self.kwargs = BASES[base]
        self.r, self.kappa, self.dtype = r, kappa, dtype
        self.model = stack(depth=3, kind=kind, dtype=dtype)
        self.before = anatomy(self.model)
        self.data = batches(STEPS, dtype)
        self.W0 = as_matrices(self.model)
        self.optimizer = BoostedLowRankOptimizer(
            self.optimizer_class,
            self.model,
            r=r,
            kappa=kappa,
            layers_per_booster=2,
            lora_alpha=1.5 * r,
            merge_precision="nearest",
            seed=3,
            **self.kwargs,
        )
        self.inits: dict[int, dict[str, Tensor]] = {}
        self.losses: list[float] = []
        self.merged: list[dict[str, Tensor]] = []
        # Each booster's pairs at their last step, and where the weights stood until then.
        self.stepped: dict[str, tuple[Tensor, Tensor]] = {}
        self.optimizer.base.register_step_post_hook(lambda *_: self.note_pairs())

    def note_pairs(self) -> None:
        pairs = self.optimizer.active_factors
        self.stepped = {n: (A.detach().clone(), B.detach().clone()) for n, (A, B) in pairs.items()}

    def weights(self) -> dict[str, Tensor]:
        """The weights themselves; ``state_dict`` would fold the pending booster into them."""
        return as_matrices(self.model, self.W0)

    def objects(self) -> list[list[int]]:
        return [[id(p) for p in group["params"]] for group in self.optimizer.param_groups]

    def train(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], bool]]:
        """Yield the weights before and after each step, and whether it merges."""
        for step, (x, y) in enumerate(self.data):
            t = self.optimizer.booster_index
            if t not in self.inits:
                pairs = self.optimizer.active_factors
                self.inits[t] = {n: A.detach().clone() for n, (A, _) in pairs.items()}
                assert all(B.count_nonzero() == 0 for _, B in pairs.values())
            before = self.weights()
            loss = cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
            merges = self.kappa is not None and (step + 1) % self.kappa == 0
            yield before, self.weights(), merges

    def reference(self) -> Trace:
        W = {name: weight.clone() for name, weight in self.W0.items()}
        return boost(
            W,
            self.data,
            init=self.inits.__getitem__,
            optimizer=lambda params: self.optimizer_class(params, **self.kwargs),
            r=self.r,
            kappa=self.kappa,
            lora_alpha=1.5 * self.r,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("kappa", [1, 3, None])
@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("base", BASES)
def test_conforms(base: str, r: int, kappa: int | None, kind: str, dtype: torch.dtype) -> None:
    run = Run(base, r, kappa, kind, dtype)
    objects, groups = run.objects(), [set(g) for g in run.optimizer.param_groups]
    t = 0
    for step, (before, after, merges) in enumerate(run.train()):
        t += merges
        assert run.optimizer.booster_index == t
        assert run.optimizer.booster_step == (
            0 if merges else step % run.kappa + 1 if run.kappa else step + 1
        )
        assert run.objects() == objects
        assert [set(g) for g in run.optimizer.param_groups] == groups
        if merges:
            check_merge(run, before, after)
            run.merged.append(after)
        else:
            assert differing(after, before) == set()
    check_finalized(run)
    assert all(torch.isfinite(torch.tensor(run.losses)))
    if dtype in TOLERANCE and not (dtype == torch.float32 and base in UNSTABLE_IN_FLOAT32):
        check_against_reference(run, run.reference())


def check_merge(run: Run, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Only the drawn targets changed, by one rounding of a product of rank r at most."""
    assert len({name.rpartition(".")[0] for name in run.stepped}) == 2
    changed = differing(after, before)
    assert changed <= {f"{name}.weight" for name in run.stepped}
    assert changed, "a booster that changed nothing proves nothing"
    for name, (A, B) in run.stepped.items():
        W, product = before[f"{name}.weight"], 1.5 * B.double() @ A.double()
        error = (after[f"{name}.weight"].double() - (W.double() + product)).abs()
        spacing = torch.finfo(run.dtype).eps * torch.maximum(W.abs(), after[f"{name}.weight"].abs())
        slack = 4 * torch.finfo(A.dtype).eps * product.abs().max()  # the factors' own precision
        # In float64 the expected sum is rounded too, in float32 a product may round twice.
        roundings = 0.51 if run.dtype == torch.bfloat16 else 1.02
        assert (error <= roundings * spacing + slack).all(), name
        assert torch.linalg.matrix_rank(product) <= run.r


def check_finalized(run: Run) -> None:
    before = run.weights()
    pending = run.optimizer.booster_step > 0
    assert run.optimizer.finalize() is run.model
    after = run.weights()
    if pending:
        check_merge(run, before, after)
        run.merged.append(after)
    else:
        assert differing(after, before) == set()
    assert anatomy(run.model) == run.before


def check_against_reference(run: Run, truth: Trace) -> None:
    def close(actual: Any, expected: Any) -> None:
        tolerance = TOLERANCE[run.dtype]
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    close(torch.tensor(run.losses), torch.tensor(truth.losses))
    assert (
        len(run.merged) == len(truth.merged) == (1 if run.kappa is None else -(-STEPS // run.kappa))
    )
    for ours, theirs in zip(run.merged, truth.merged, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("base", BASES)
def test_state_of_a_later_booster_is_that_of_a_new_optimizer(base: str) -> None:
    """Bias corrections, averages, step sizes: every entry, not only what shows in the factors."""
    run = Run(base, 2, 5, "linear", torch.float64)
    for _ in run.train():
        pass
    truth, pairs = run.reference(), run.optimizer.active_factors
    assert run.optimizer.booster_step == 2
    assert truth.pairs.keys() == pairs.keys()
    for name, ours in pairs.items():
        for factor, true_factor in zip(ours, truth.pairs[name], strict=True):
            torch.testing.assert_close(factor.detach(), true_factor.detach(), rtol=1e-9, atol=1e-9)
            state, true_state = run.optimizer.state[factor], truth.optimizer.state[true_factor]
            assert state.keys() == true_state.keys()
            for key, expected in true_state.items():
                torch.testing.assert_close(state[key], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_state_at_the_start_of_a_booster_is_that_of_the_first(base: str) -> None:
    """On the same gradients, a later booster's first step does what the first step ever did."""
    run = Run(base, 1, 3, "linear", torch.float64)
    optimizer = run.optimizer
    factors = [factor for group in optimizer.param_groups for factor in group["params"]]
    start = [torch.randn_like(f) for f in factors]
    gradients = [torch.randn_like(f) for f in factors]

    def first_step() -> list[Tensor]:
        with torch.no_grad():
            for factor, value, gradient in zip(factors, start, gradients, strict=True):
                factor.copy_(value)
                factor.grad = gradient.clone()
        optimizer.step()
        return [f.detach().clone() for f in factors]

    first = first_step()
    optimizer.merge()
    for _ in range(4):
        for factor in factors:
            factor.grad = torch.randn_like(factor)
        optimizer.step()
    assert optimizer.booster_step == 1
    optimizer.merge()
    again = first_step()
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, start))


@pytest.mark.parametrize("base", ["adamw", "sgd-momentum", "adafactor", "rprop"])
@pytest.mark.parametrize("kappa", [1, 2, None])
def test_saved_modules_keep_their_state(base: str, kappa: int | None) -> None:
    model, data = stack(), batches(6)
    W = as_matrices(model)
    optimizer_class, kwargs = BASES[base]
    optimizer = BoostedLowRankOptimizer(
        optimizer_class,
        model,
        kappa=kappa,
        layers_per_booster=1,
        lora_alpha=None,
        modules_to_save=["head"],
        **kwargs,
    )
    inits: dict[int, dict[str, Tensor]] = {}
    losses = []
    for x, y in data:
        pairs = optimizer.active_factors
        inits.setdefault(
            optimizer.booster_index, {n: A.detach().clone() for n, (A, _) in pairs.items()}
        )
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    optimizer.finalize()
    truth = boost(
        W,
        data,
        init=inits.__getitem__,
        optimizer=lambda params: optimizer_class(params, **kwargs),
        saved=["head.weight", "head.bias"],
        kappa=kappa,
    )
    torch.testing.assert_close(
        torch.tensor(losses), torch.tensor(truth.losses), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(as_matrices(model), truth.merged[-1], rtol=1e-9, atol=1e-9)
