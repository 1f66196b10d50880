"""Lightning's Trainer and Fabric: fit, resume, fit again, look for a rate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset
from torch_xgb.integrations.lightning import plain

from anatomy import anatomy
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

lightning: Any = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, of workers and loggers


class Module(lightning.LightningModule):  # type: ignore[misc]
    """What a user writes, in the words of Lightning's guide."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.net = 1e-2, stack(dtype=torch.float32)
        self.seen: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.seen.append(loss.item())
        return loss

    def configure_optimizers(self) -> BoostedLowRankOptimizer:
        told: dict[str, Any] = {"kappa": 3, "layers_per_booster": 2, "modules_to_save": ["head"]}
        return BoostedLowRankOptimizer(AdamW, plain(self), lr=self.lr, **told)


def loader() -> DataLoader[Any]:
    x, y = zip(*batches(5), strict=True)
    return DataLoader(TensorDataset(torch.cat(x).float(), torch.cat(y)), batch_size=8)


def trainer(folder: Path, epochs: int) -> Any:
    return lightning.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, begun, resumed = Module(), Module(), Module()
    trainer(tmp_path / "whole", 4).fit(whole, loader())
    first = trainer(tmp_path / "begun", 2)
    first.fit(begun, loader())
    path = first.checkpoint_callback.best_model_path
    trainer(tmp_path / "resumed", 4).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    assert whole.seen == begun.seen + resumed.seen
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_fit_again_and_the_rate_finder(tmp_path: Path) -> None:
    """``configure_optimizers`` is called while the last optimizer is still referred to."""
    from lightning.pytorch.tuner import Tuner

    module = Module()
    before = anatomy(module.net)
    first = trainer(tmp_path, 1)
    first.fit(module, loader())
    trainer(tmp_path, 1).fit(module, loader())
    tuned = trainer(tmp_path, 1)
    weights = {n: v.clone() for n, v in module.state_dict().items()}
    Tuner(tuned).lr_find(module, loader(), num_training=7, early_stop_threshold=None)
    for name, value in plain(module).state_dict().items():
        torch.testing.assert_close(value, weights[name])
    tuned.fit(module, loader())
    assert anatomy(plain(module).net) == before


def test_fabric(tmp_path: Path) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model = stack(dtype=torch.float32)
    boosted = BoostedLowRankOptimizer(AdamW, model, kappa=3, modules_to_save=["head"], lr=1e-2)
    wrapped, optimizer = fabric.setup(model, boosted)

    def train() -> Tensor:
        for x, y in batches(4):
            fabric.backward(nn.functional.cross_entropy(wrapped(x.float()), y))
            fabric.clip_gradients(wrapped, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
        return wrapped(torch.ones(1, 2, 5)).detach()

    train()
    fabric.save(tmp_path / "state.ckpt", {"model": wrapped, "optimizer": optimizer})
    expected = train()
    fabric.load(tmp_path / "state.ckpt", {"model": wrapped, "optimizer": optimizer})
    assert torch.equal(train(), expected)
