"""The ledger of a run whose boosters take up pairs: each is what it put in and what it took out."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from recording import adapted, config_of, same, weights_of
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer, Chain, Decay
from torch_xgb.ledger.plot import effective_ranks
from training import train

RUNS: dict[str, dict[str, Any]] = {
    "one": {"carry": 0.8},
    "bias": {"carry": [0.9, 0.4], "bias": "targets", "r": [2, 1, 2, 3], "lora_alpha": 3.0},
    "direft": {"carry": 0.7, "adapter": "direft", "r": [1, 2], "shrinkage": 0.6},
    "residual": {"carry": Decay(2.0), "shrinkage": [1.0, 0.5], "dtype": torch.bfloat16},
    "stochastic": {"carry": 0.8, "merge_precision": "stochastic", "dtype": torch.bfloat16},
}


def begin(record: bool | Path = True, **given: Any) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    model = stack(depth=3, dtype=given.pop("dtype", torch.float32))
    settings = {"kappa": 2, "layers_per_booster": 2, "lr": 0.03, "lora_alpha": None, **given}
    return model, BoostedLowRankOptimizer(AdamW, model, record=record, **settings)


def noted(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> list[dict[str, Tensor]]:
    """The weights right after each merge, before anything is taken out of them again."""
    carry, after = optimizer.boosting._carry, []
    assert carry is not None
    put_down: Callable[..., None] = carry.put_down

    def noting(*args: Any) -> None:
        put_down(*args)
        after.append({n: p for n, p in weights_of(model).items() if "boosters" not in n})

    carry.put_down = noting  # type: ignore[method-assign]
    return after


@pytest.mark.parametrize("run", RUNS)
def test_every_state_of_a_run_comes_back(run: str, tmp_path: Path) -> None:
    """Bitwise, as of any ledger; and the adapter computes what the model does."""
    settings = RUNS[run]
    dtype = settings.get("dtype", torch.float32)
    model, optimizer = begin(**settings)
    original, after = stack(depth=3, dtype=dtype), noted(model, optimizer)
    train(model, optimizer, batches(13, dtype))
    chain = optimizer.chain
    optimizer.finalize()
    assert chain is not None and len(chain) == len(after) == 7
    assert any(record.taken for record in chain)
    for t in (6, 2, 0):
        assert same(weights_of(chain.rollback(stack(depth=3, dtype=dtype), t)), after[t])
    trained = chain.apply(stack(depth=3, dtype=dtype), exact=False)
    assert same(weights_of(trained), weights_of(model))
    if dtype == torch.bfloat16:
        return
    wide = {name: tensor.double() for name, tensor in weights_of(original).items()}
    for name in chain.header.weights:
        left, right = chain.delta(name)
        delta = (left @ right).view_as(wide[name])
        assert torch.allclose(wide[name] + delta, after[-1][name].double(), rtol=0, atol=1e-6)
    last, name = chain[6], next(iter(chain[6].update_norm))
    before = after[5][f"{name}.weight"].double()
    norm = float((after[6][f"{name}.weight"].double() - before).norm())
    assert last.update_norm[name] == pytest.approx(norm, rel=1e-3)
    report = chain.to_peft(tmp_path)
    assert report.total_error < 1e-6
    x = batches(1)[0][0].float()
    loaded = adapted(stack(depth=3, dtype=dtype), tmp_path)
    assert torch.allclose(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    cut = chain.to_peft(tmp_path, rank=2)
    assert set(cut.rank.values()) <= {1, 2} and 0 < cut.total_error < 1


def test_directions_that_are_carried_are_counted_once(tmp_path: Path) -> None:
    """With all of each pair carried, a run of many boosters is one LoRA, and so is its adapter."""
    model, optimizer = begin(carry=1.0, r=2, layers_per_booster=None)
    train(model, optimizer, batches(11, torch.float32))
    assert optimizer.chain is not None
    optimizer.finalize()
    assert set(optimizer.chain.to_peft(tmp_path).rank.values()) == {2}
    assert config_of(tmp_path)["r"] == 2
    left, right = optimizer.chain.delta("blocks.0.query.weight")
    assert left.shape[1] == right.shape[0] == 6 * 2 + 5 * 2
    facts = [record.facts for record in optimizer.chain]
    ranks = effective_ranks(optimizer.chain.header, facts, optimizer.chain.delta, [0, 5])
    assert all(1 <= rank <= 2 + 1e-6 for rank in ranks)


def test_a_run_goes_on_from_its_ledger(tmp_path: Path) -> None:
    settings = RUNS["bias"] | {"shrinkage": 0.7, "init": "gradient"}
    data = batches(13, torch.float32)
    whole, of_whole = begin(tmp_path / "whole", **settings)
    train(whole, of_whole, data)
    first, of_first = begin(tmp_path / "run", **settings)
    train(first, of_first, data[:7])
    file = io.BytesIO()
    torch.save((first.state_dict(), of_first.state_dict()), file)
    train(first, of_first, data[7:10])  # and it is killed
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    assert of_first.boosting.writer is not None
    of_first.boosting.writer.close()
    model, optimizer = begin(tmp_path / "run", **settings)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer, data[7:])
    for one in (of_whole, optimizer):
        one.finalize()
    chains = [Chain.load(tmp_path / name) for name in ("whole", "run")]
    for ours, theirs in zip(*chains, strict=True):
        assert ours.facts == theirs.facts
        assert all(torch.equal(ours.tensors[key], theirs.tensors[key]) for key in ours.tensors)
    assert same(weights_of(model), weights_of(whole))


def test_what_was_taken_out_is_looked_at(tmp_path: Path) -> None:
    model, optimizer = begin(carry=0.8)
    train(model, optimizer, batches(6, torch.float32))
    chain = optimizer.chain
    assert chain is not None
    record, header = chain[2], chain.header
    facts = json.loads(json.dumps(record.facts))
    for spoil, said in (
        (lambda f: f.pop("taken"), "it lacks 'taken'"),
        (lambda f: f.update(shrinkage=None), "'shrinkage': a number"),
        (lambda f: f["taken"].clear(), "which is nobody's"),
        (lambda f: f["scales"].clear(), "and put nothing in"),
        (lambda f: next(iter(f["taken"].values())).update(scale="1"), "'scale': a number"),
    ):
        wrong = json.loads(json.dumps(facts))
        spoil(wrong)
        with pytest.raises(ValueError, match=said):
            type(record).read(wrong, record.tensors, header)
    found = type(record).read(facts, record.tensors, header)
    assert found.facts == record.facts
