"""What earlier versions of the library have saved goes on with this one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anatomy import flat
from earlier import (
    CASES,
    FOLDER,
    LEDGERS,
    SAVED,
    STEPS,
    ZERO,
    begin,
    filled,
    train,
    unpack,
    zero_case,
)
from processes import run
from torch_xgb import Chain

# The same on every machine but for the rounding of its kernels; of bfloat16 some spacings.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5, torch.bfloat16: 0.01}


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())


def test_every_file_has_a_test() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {f"{name}.tar.xz" for name in (*CASES, *LEDGERS, *ZERO)}


def go_on(model: nn.Module, optimizer: Any, later: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Train with the data that was left; the weights before and after ``finalize``."""
    assert len(later["x"]) == STEPS - SAVED
    train(model, optimizer, zip(later["x"], later["y"], strict=True))
    pending = flat(model)
    return pending, flat(optimizer.finalize())


@pytest.mark.filterwarnings("ignore:.*differ in their last bits.*not that of the machine")
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_goes_on(name: str, tmp_path: Path) -> None:
    case, folder = CASES[name], unpack(name, tmp_path)
    saved, later = read(folder / "saved.pt"), read(folder / "later.pt")
    model, optimizer = begin(case, seed=9)
    model.load_state_dict(saved["model"])
    start = flat(model)
    optimizer.load_state_dict(saved["optimizer"])
    assert (optimizer.booster_index, optimizer.booster_step) == case.place
    pending, end = go_on(model, optimizer, later)
    limit = TOLERANCE[case.dtype]
    assert distance(start, later["end"]) > 2 * limit  # there was something to train
    assert distance(pending, later["pending"]) < limit
    assert distance(end, later["end"]) < limit


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].dtype == torch.float64])
def test_weights_alone_do_not_go_on_alike(name: str, tmp_path: Path) -> None:
    """The comparison above would notice a state that is not read."""
    case, folder = CASES[name], unpack(name, tmp_path)
    model, optimizer = begin(case, seed=9)
    model.load_state_dict(read(folder / "saved.pt")["model"])
    later = read(folder / "later.pt")
    pending, end = go_on(model, optimizer, later)
    assert distance(pending, later["pending"]) > 1e-3
    assert distance(end, later["end"]) > 1e-3


def test_a_residual_is_read(tmp_path: Path) -> None:
    """Its part of the weights is below bfloat16's spacing, and the state is saved as it was."""
    saved = read(unpack("bf16-residual", tmp_path) / "saved.pt")
    residuals = saved["optimizer"]["booster"]["weights"]["residuals"]
    assert any(bool(residual.any()) for residual in residuals.values())
    model, optimizer = begin(CASES["bf16-residual"], seed=9)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    again = optimizer.state_dict()["booster"]["weights"]["residuals"]
    assert again.keys() == residuals.keys()
    assert all(torch.equal(again[name], residuals[name]) for name in residuals)


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_is_read(name: str, tmp_path: Path) -> None:
    case, folder = LEDGERS[name], unpack(name, tmp_path)
    after = read(folder / "later.pt")["after"]
    chain = Chain.load(folder / ("run.safetensors" if name == "packed" else "run"))
    assert len(chain) == len(after) - 1 >= 3
    assert chain.best == 1
    limit = 1e-12 if case.dtype == torch.float64 else 1e-6
    for t in range(-1, len(chain)):
        model = filled(case, after[-1])
        assert t == len(chain) - 1 or distance(flat(model), after[t + 1]) > 1e-3
        assert distance(flat(chain.rollback(model, to=t)), after[t + 1]) < limit
        applied = chain.apply(filled(case, after[0]), to=t)
        assert distance(flat(applied), after[t + 1]) < limit


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_is_exported(name: str, tmp_path: Path) -> None:
    """The adapter's products are the differences of the weights."""
    from safetensors.torch import load_file

    case, folder = LEDGERS[name], unpack(name, tmp_path)
    after = read(folder / "later.pt")["after"]
    chain = Chain.load(folder / ("run.safetensors" if name == "packed" else "run"))
    chain.to_peft(tmp_path / "adapter", base_model_name_or_path="base")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    first, last = (filled(case, vector).state_dict() for vector in (after[0], after[-1]))
    factors = {key for key in tensors if key.endswith("lora_A.weight")}
    assert factors
    for key in factors:
        A, B = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        target = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        moved = last[f"{target}.weight"].double() - first[f"{target}.weight"].double()
        assert float(moved.norm()) > 1e-3
        product = (B @ A).T if case.kind == "conv1d" else B @ A
        assert distance(product, moved) < 1e-6


def _zero(stage: int, folder: str) -> dict[str, Any]:
    """Load, and train with the data that was left."""
    from torch_xgb.integrations.deepspeed import boosted

    import zero_runs

    later = read(Path(folder, "later.pt"))
    engine = zero_runs.engine_of(zero_case(stage), seed=9)
    path, _ = engine.load_checkpoint(str(Path(folder, "saved")))
    optimizer = boosted(engine)
    found: dict[str, Any] = {"path": path}
    found["place"] = (optimizer.booster_index, optimizer.booster_step)
    found["start"] = _whole(engine)
    assert len(later["x"]) == STEPS - SAVED
    for x, y in zip(later["x"], later["y"], strict=True):
        zero_runs.steps(engine, [(x, y)])
    optimizer.finalize()
    found["end"], found["later"] = _whole(engine), later["end"]
    engine.destroy()
    return found


def _whole(engine: Any) -> Tensor:
    from zero_runs import whole_weights

    return torch.cat([tensor.reshape(-1) for tensor in whole_weights(engine).values()])


@pytest.mark.distributed
@pytest.mark.parametrize("name", ZERO)
def test_a_deepspeed_checkpoint_goes_on(name: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="an extra of its own")
    for found in run(_zero, 2, ZERO[name], str(unpack(name, tmp_path))):
        assert found["path"]
        assert found["place"] == (1, 2)
        assert distance(found["start"], found["later"]) > 1e-2
        assert distance(found["end"], found["later"]) < 1e-5
