"""The ledger of a run that trains experts: replayed, rolled back, and exported for PEFT."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW

from mixtures import EXPERTS, Mixed, loss_of, mixture, sentences
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.ledger.chain import Chain


def recorded(kind: str, path: Path, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """Four boosters of one block in three, of ranks 1 and 2."""
    model = mixture(kind, dtype=dtype)
    optimizer = BoostedLowRankOptimizer(
        AdamW,
        model,
        lr=0.02,
        kappa=1,
        r=[1, 2],
        layers_per_booster=1,
        layer_sampler="cyclic",
        target_parameters=[*EXPERTS, "gate.weight" if kind == "mixtral" else "router.weight"],
        record=path,
        **more,
    )
    for ids in sentences(4):
        loss_of(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.finalize()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=sentences(1)[0]).logits


@pytest.mark.parametrize(
    ("dtype", "more"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float32, {"carry": [0.5, 0.7], "shrinkage": 0.8}),
    ],
    ids=["float32", "bfloat16", "carry"],
)
def test_replayed_and_rolled_back(tmp_path: Path, dtype: torch.dtype, more: Any) -> None:
    model = recorded("gpt_oss", tmp_path / "run", dtype, **more)
    chain = Chain.load(tmp_path / "run")
    assert len(chain) == 4 + bool(more)  # what a booster of no steps took up is merged again
    assert any(record.taken for record in chain) is bool(more)
    trained = chain.apply(mixture("gpt_oss", dtype=dtype), exact=False).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained[name]), name
    original = mixture("gpt_oss", dtype=dtype).state_dict()
    for name, weight in chain.rollback(model, to=-1).state_dict().items():
        assert torch.equal(weight, original[name]), name
    chain.save(tmp_path / "packed.safetensors")
    packed = Chain.load(tmp_path / "packed.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    left, right = packed.delta(name)
    assert left.shape[:2] == (4, 16) and right.shape[::2] == (4, 20)
    summed = packed.apply(mixture("gpt_oss", dtype=dtype), exact=True).get_parameter(name)
    close = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 0, "atol": 1e-6}
    assert torch.allclose(summed - original[name], (left @ right).mT.to(dtype), **close)


def adapted(base: nn.Module, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # peft 0.21 looks for patterns of ranks among modules alone, and uses them all the same.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern", RuntimeWarning)
        return PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("rank", [None, 1])
def test_peft_loads_experts(tmp_path: Path, kind: str, rank: int | None) -> None:
    """What peft loads computes what the trained model does, or its best part of a rank."""
    model = recorded(kind, tmp_path / "run")
    chain = Chain.load(tmp_path / "run")
    report = chain.to_peft(tmp_path / "adapter", rank=rank)
    loaded = adapted(mixture(kind, dtype=torch.float32), tmp_path / "adapter")
    if rank is None:
        assert report.total_error < 1e-12
        assert torch.allclose(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    merged, original = loaded.merge_and_unload(), mixture(kind, dtype=torch.float32)
    for name in (n for n in chain.header.weights if "experts" in n):
        left, right = chain.delta(name)
        change = (merged.get_parameter(name) - original.get_parameter(name)).double()
        change = change.mT if kind == "gpt_oss" else change
        U, sigma, Vh = torch.linalg.svd(left @ right, full_matrices=False)
        kept = slice(0, rank)
        wanted = (U[..., kept] * sigma[..., None, kept]) @ Vh[..., kept, :]
        assert torch.allclose(change, wanted, rtol=0, atol=1e-6), name
        lost = sigma[..., rank:].norm() / sigma.norm() if rank else torch.tensor(0.0)
        assert report.error.get(name, 0.0) == pytest.approx(float(lost), abs=1e-9)


def test_maps_inside_a_module_whose_weight_is_wrapped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(2, 6, 8)
    base = copy.deepcopy(model)
    settings = {"kappa": 2, "layers_per_booster": None, "target_parameters": r".*\d\.weight"}
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1, record=tmp_path / "run", **settings)
    for _ in range(4):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.chain is not None
    optimizer.chain.to_peft(tmp_path / "adapter")
    loaded = adapted(base, tmp_path / "adapter")
    assert torch.allclose(loaded(x), optimizer.finalize()(x), rtol=1e-5, atol=1e-5)
