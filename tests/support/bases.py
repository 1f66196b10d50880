"""Every base optimizer of the conformance table, with settings strong enough to be told apart."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Base = tuple[Callable[..., Optimizer], dict[str, Any]]


class Lion(Optimizer):
    """An optimizer torch does not have: sign of an interpolated momentum (Chen et al., 2023)."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                # A soft sign: the hard one turns a rounding error around zero into a full step.
                p.sub_(group["lr"] * torch.tanh(100 * momentum.lerp(p.grad, 1 - group["beta"])))
                momentum.lerp_(p.grad, 0.01)
        return loss


class Slowing(Optimizer):
    """Plain descent at lr / k; k is counted in the group, as schedule-free optimizers do."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"] / group["k"])
        return None if closure is None else closure()


class Eager(Optimizer):
    """Momentum whose state is made at construction, as Adagrad's long was."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self.state[p]["momentum"].mul_(0.5).add_(p.grad), alpha=group["lr"])
        return None if closure is None else closure()


class Averaging(Optimizer):
    """Schedule-free descent (Defazio et al., 2024): averages in evaluation, and two modes."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    def eval(self) -> None:
        self._move(False)

    def train(self) -> None:
        self._move(True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("not in train mode: call train()")
            group["k"] += 1
            for y in (p for p in group["params"] if p.grad is not None):
                z = self.state[y].setdefault("z", y.clone())
                x = y.lerp(z, 1 - 1 / group["beta"])
                z.sub_(y.grad, alpha=group["lr"])
                y.copy_(z.lerp(x.lerp(z, 1 / group["k"]), group["beta"]))
        return loss

    @torch.no_grad()
    def _move(self, train: bool) -> None:
        for group in self.param_groups:
            weight = 1 - group["beta"] if train else 1 - 1 / group["beta"]
            for p in group["params"] if group["train_mode"] != train else ():
                if "z" in self.state.get(p, {}):
                    p.lerp_(self.state[p]["z"], weight)
            group["train_mode"] = train


def adamw_of(params: Sequence[Tensor]) -> Optimizer:
    """A callable in place of a class."""
    return torch.optim.AdamW(params, lr=0.02, betas=(0.8, 0.9))


BASES: dict[str, Base] = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "sgd-momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.02}),
    "adam-amsgrad": (torch.optim.Adam, {"lr": 0.02, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    "adamw-foreach": (torch.optim.AdamW, {"lr": 0.02, "foreach": True}),
    "adamw-fused": (torch.optim.AdamW, {"lr": 0.02, "fused": True}),
    "adamax": (torch.optim.Adamax, {"lr": 0.02}),
    "nadam": (torch.optim.NAdam, {"lr": 0.02}),
    "radam": (torch.optim.RAdam, {"lr": 0.02}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "rprop": (torch.optim.Rprop, {"lr": 0.01}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "initial_accumulator_value": 0.1}),
    "adadelta": (torch.optim.Adadelta, {"lr": 2.0, "eps": 1e-4}),
    "asgd": (torch.optim.ASGD, {"lr": 0.3, "t0": 0.0, "lambd": 0.01}),
    "adafactor": (torch.optim.Adafactor, {"lr": 0.05}),
    "third-party": (Lion, {"lr": 0.02}),
    "third-party-counting": (Slowing, {"lr": 0.5}),
    "third-party-eager": (Eager, {"lr": 0.2}),
    "callable": (adamw_of, {}),
}
if hasattr(torch.optim, "Muon"):  # since torch 2.9
    BASES["muon"] = (torch.optim.Muon, {"lr": 0.02, "weight_decay": 0.1})
