"""The life of a run: what a user may do to it, one call each, and what holds after every one.

``Life`` knows nothing of who calls; ``stateful`` has hypothesis do it.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.reliability.child import Child
from benchmarks.reliability.interruptions import interrupted
from benchmarks.reliability.subjects import Kind, batch, boosted, digest, model_of, step

__all__ = ["Life", "resumed"]

# Of the largest output. A weight is rounded once to its dtype when a booster is folded in.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}


class Life:
    """A run, and what must hold of it.

    Args:
        kind: Its model and settings.
        child: A process that resumes what this one saved.
    """

    def __init__(self, kind: Kind, child: Child) -> None:
        self.kind, self.child = kind, child
        self.model = model_of(kind)
        self.number = 0
        self.saved: list[tuple[int, bytes]] = []
        self._begin()

    def _begin(self) -> None:
        self.optimizer = boosted(self.model, self.kind)
        self.scheduler = LambdaLR(self.optimizer, lambda _: 1.0)
        self.saved.clear()
        self._look()

    # What a user may do

    def step(self) -> None:
        """Take a step of an ordinary loop."""
        step(self.model, self.optimizer, self.number)
        self.number += 1

    def skip(self) -> None:
        """Have GradScaler find an overflow, and skip the step."""
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        x, y = batch(self.number, self.kind.dtype)
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x).float(), y)
        scaler.scale(loss).backward()  # by now a merge that was interrupted is made up for
        before = self.optimizer.boosting.course.progress
        with torch.no_grad():
            self.optimizer.boosting.lent[0].grad.fill_(float("inf"))
        self.optimizer.observe(loss.detach())
        if self.kind.dtype is not torch.bfloat16:  # whose gradients GradScaler does not unscale
            scaler.step(self.optimizer)
            scaler.update()
        assert self.optimizer.boosting.course.progress == before, "a skipped step was counted"
        self.optimizer.zero_grad()

    def accumulate(self) -> None:
        """Accumulate two batches into a step, with clipping."""
        self.optimizer.zero_grad()
        for part in (0, 1):
            x, y = batch(self.number + part, self.kind.dtype)
            loss = cross_entropy(self.model(x).float(), y) / 2
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.observe(loss.detach())
        self.optimizer.step()
        self.number += 2

    def merge(self) -> None:
        """End the booster; the function stays."""
        before = self._outputs(self.model)
        self.optimizer.merge()
        self._same(self._outputs(self.model), before, "a merge")

    def evaluate(self) -> None:
        """Evaluate in the middle of training."""
        self.model.eval()
        with torch.no_grad():
            self.model(batch(self.number, self.kind.dtype)[0])
        self.model.train()

    def change_rate(self, factor: float) -> None:
        """Set the rate by hand."""
        for group in self.optimizer.param_groups:
            group["lr"] = max(min(group["lr"] * factor, 0.1), 1e-4)

    def schedule(self) -> None:
        """Step a scheduler."""
        self.scheduler.step()

    def copy(self) -> None:
        """Go on with a copy of model and optimizer; the original goes on alike."""
        twin_model, twin = copy.deepcopy((self.model, self.optimizer))
        step(twin_model, twin, self.number)
        self.step()
        mine, theirs = digest(self.model.state_dict()), digest(twin_model.state_dict())
        assert mine == theirs, "a copy went on otherwise"

    def save(self) -> None:
        """Save a checkpoint, and have another process go on from it as this one does."""
        checkpoint = self._checkpoint()
        self.saved.append((self.number, checkpoint))
        there = self.child.ask("resume", self.kind, checkpoint, self.number, 4)
        for _ in range(4):
            self.step()
        here = digest(self.model.state_dict(), self.optimizer.state_dict())
        assert there == here, "resumed in another process, the run went on otherwise"

    def go_back(self, which: int) -> None:
        """Load an older checkpoint into the run as it is."""
        self.number, checkpoint = self.saved[which % len(self.saved)]
        saved = pickle.loads(checkpoint)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        again = digest(self.model.state_dict())
        assert again == digest(saved["model"]), "weights that were loaded are not those of before"
        self._look()

    def interrupt(self, line: int, call: str) -> None:
        """Interrupt a call at a line of it, and go on; a twin is never interrupted."""
        twin_model, twin = copy.deepcopy((self.model, self.optimizer))
        before = self._outputs(self.model)
        if call == "step":
            step(twin_model, twin, self.number)
        else:
            twin.merge()
        after = self._outputs(twin_model)
        act = self.step if call == "step" else self.optimizer.merge
        number = self.number
        if not interrupted(act, line):
            assert digest(self.model.state_dict()) == digest(twin_model.state_dict())
            return
        now = self._outputs(self.model)
        self.number = number + 1 if call == "step" else number
        near = min(float((now - then).abs().max()) for then in (before, after))
        bound = _TOLERANCE[self.kind.dtype] * max(1.0, float(before.abs().max()))
        assert near <= bound, f"interrupted at line {line} of {call}(): neither before nor after"
        self.optimizer.zero_grad()
        self._look()

    def finish(self) -> None:
        """Finalize, and build anew on what came of it."""
        before = self._outputs(self.model)
        assert self.optimizer.finalize() is self.model
        self._same(self._outputs(self.model), before, "finalize()")
        assert not any("boosters" in name for name, _ in self.model.named_parameters())
        self._begin()

    # What holds at every moment

    def check(self) -> None:
        """Assert it."""
        self._check_saved_weights()
        self._check_frozen_weights()

    def _check_saved_weights(self) -> None:
        plain = model_of(self.kind, seed=1)
        plain.load_state_dict(self.model.state_dict())
        assert plain.state_dict().keys() == self.model.state_dict().keys()
        self._same(self._outputs(plain), self._outputs(self.model), "state_dict()")

    def _check_frozen_weights(self) -> None:
        index = self.optimizer.booster_index
        for name, kept in self._kept.items():
            if torch.equal(kept, self.model.get_parameter(name)):
                continue
            layer = self.optimizer.targets[name.rpartition(".")[0]]
            assert index != self._index, f"{name} changed within booster {index}"
            assert index > self._index + 1 or layer in self._drawn, f"{name} changed, and was not drawn"  # fmt: skip  # noqa: E501
        self._look()

    def _look(self) -> None:
        self._index, self._drawn = self.optimizer.booster_index, set(self.optimizer.active_layers)
        if self.kind.settings == "carry":  # takes pairs out of the weights of the next draw
            self._kept: dict[str, Tensor] = {}
            return
        names = [f"{name}.weight" for name in self.optimizer.targets]
        self._kept = {name: self.model.get_parameter(name).detach().clone() for name in names}

    def _checkpoint(self) -> bytes:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return pickle.dumps(state)

    def _outputs(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(batch(0, self.kind.dtype)[0]).double()

    def _same(self, a: Tensor, b: Tensor, what: str) -> None:
        bound = _TOLERANCE[self.kind.dtype] * max(1.0, float(b.abs().max()))
        assert float((a - b).abs().max()) <= bound, f"{what} changed what the model computes"


def resumed(kind: Kind, checkpoint: bytes, number: int, steps: int) -> str:
    """Resume, take steps, and return the digest of everything: what the child does."""
    saved: dict[str, Any] = pickle.loads(checkpoint)
    model = model_of(kind, seed=2)
    model.load_state_dict(saved["model"])
    optimizer = boosted(model, kind)
    optimizer.load_state_dict(saved["optimizer"])
    for i in range(number, number + steps):
        step(model, optimizer, i)
    return digest(model.state_dict(), optimizer.state_dict())
