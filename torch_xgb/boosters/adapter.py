"""A target's place in the forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_xgb.boosters.accumulator import Accumulator, require_passing
from torch_xgb.boosters.beside import Beside
from torch_xgb.boosters.compilers import Tracing, take_note
from torch_xgb.boosters.conduct import Conduct
from torch_xgb.boosters.cut import cut_of
from torch_xgb.boosters.forms import Form, Update
from torch_xgb.boosters.hooks import calls, unhook
from torch_xgb.boosters.pair import Pair
from torch_xgb.boosters.slots import Lent
from torch_xgb.boosters.stand_in import Own
from torch_xgb.formulas.lowrank import with_low_rank
from torch_xgb.targets.layers import Target
from torch_xgb.weights.product import Product
from torch_xgb.weights.weight import Weight

__all__ = ["Adapter"]


class Adapter:
    """A target's place in the forward pass: a hook that adds a pair's share while one is bound.

    Of a linear map the share is added to the output. A bare Parameter's modules read W + s·B A for
    as long as their forward runs: it stands before the Parameter among what is looked up in them,
    whose ``_parameters`` stay as they are.

    Attributes:
        bound: The Parameters lent to it, or None; written here alone.
        resting: Those that a copy of the model holds merged into its weights, or None.
        lent: Where the bound ones are kept, and under which names.
        r: The rank in use, at most the Parameters' own.
        s: The scaling.
        idle: Parameters lent to nobody that are to get a gradient, of zeros, beside this pair's.
        accumulator: What is merged beside the weight, or None if merges go into it.
    """

    def __init__(self, target: Target, form: Form, dropout: float, tracing: Tracing) -> None:
        self.target = target
        self.form = form
        self.dropout = dropout
        self.tracing = tracing
        self.bound: Pair[nn.Parameter] | None = None
        self.resting: Pair[nn.Parameter] | None = None
        self.lent: Lent | None = None
        self.r = 0
        self.s = 1.0
        self.idle: tuple[nn.Parameter, ...] = ()
        self.accumulator: Accumulator | None = None
        self._conduct = Conduct(target.modules)
        self._own = Own()

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapter:
        """Copy it, what reaches the model last: a tied weight's other modules ask for the pair."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        held = {name: value for name, value in vars(self).items() if name != "target"}
        vars(twin).update({name: copy.deepcopy(value, memo) for name, value in held.items()})
        twin.target = copy.deepcopy(self.target, memo)
        return twin

    def take(self, lent: Lent, r: int, s: float) -> None:
        """Take a pair, and enter the forward pass with it."""
        self.lent, self.bound, self.r, self.s = lent, lent.parameters, r, s
        self._conduct.forget()
        self._own = Own()
        for module in self.target.modules:
            self._own.see(module, self._held(module))
        self.hook()

    def give_back(self) -> None:
        """Give the pair back."""
        self.bound, self.idle = None, ()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Put the pair aside for a while."""
        bound, self.bound = self.bound, None
        try:
            yield
        finally:
            self.bound = bound

    def rest(self) -> None:
        """Put the pair at rest, in a copy whose weights hold it."""
        self.bound, self.resting = None, self.bound
        self._say_at_rest(self.resting, True)

    def wake(self) -> bool:
        """Take a resting pair up again; return whether there was one."""
        if self.resting is None:
            return False
        self._say_at_rest(self.resting, False)
        self.bound, self.resting = self.resting, None
        return True

    @property
    def parameters(self) -> Pair[nn.Parameter]:
        """The bound Parameters, whole."""
        assert self.bound is not None
        return self.bound

    @property
    def pair(self) -> Pair[Tensor]:
        """The bound pair at the rank in use: the Parameters themselves at full rank."""
        return self.form.narrow(self.parameters, self.r)  # type: ignore[arg-type]

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The weights a merge changes: none, if it goes beside them."""
        return () if self.target.beside else self.form.weights(self.target)

    @property
    def pending(self) -> bool:
        """Whether a pair is bound that changes the function."""
        return self.bound is not None and any(bool(f.count_nonzero()) for f in self.bound.grown)

    @property
    def waits(self) -> bool:
        """Whether the bound pair waits for A's gradient: with A and b zero, B changes nothing."""
        A, b = self.parameters.A, self.parameters.b
        return not (bool(A.any()) or (b is not None and bool(b.any())))

    @torch.no_grad()
    def start_over(self) -> None:
        """Make the bound pair change nothing."""
        for factor in self.parameters.grown:
            factor.zero_()

    def updates(self, alpha: float) -> list[tuple[Weight, Update]]:
        """Return what a merge adds to each weight, α times the pair's product."""
        pair = self.pair.map(Tensor.detach)
        found = []
        for weight in self.form.weights(self.target):
            left, right, scale = self.form.update(weight, pair, self.s)
            # The layout of what a ledger replays, so that both merges round alike.
            found.append((weight, (left.contiguous(), right.contiguous(), alpha * scale)))
        return found

    def put_beside(self, accumulator: Accumulator | None) -> None:
        """Add the bound pair to an accumulator, its own or a copy's, if there is one."""
        if accumulator is not None:
            for _, update in self.updates(1.0):
                accumulator.addition(Product(*update)).go_on()

    def hook(self) -> None:
        """Enter the forward pass, ahead of the module's other hooks, where this is not done."""
        bare = self.target.weight.bare
        for module in self.target.modules:
            if calls(module, self) == (2 if bare else 1):
                continue
            unhook(module, self)
            if bare:
                module.register_forward_pre_hook(self._lay_over)
                module.register_forward_hook(self._lift, always_call=True)
            else:
                module.register_forward_hook(self, prepend=True, with_kwargs=True)

    def unhook(self) -> None:
        """Leave it."""
        for module in self.target.modules:
            unhook(module, self)

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: Any,  # noqa: ANN401
        y: Tensor | None = None,
    ) -> Tensor:
        """Return the module's output with the pair's share."""
        if y is None:  # quantisation copies hooks to its own modules, called without kwargs
            kwargs, y = {}, kwargs
        assert y is not None
        if self.bound is None:
            return y
        if torch.compiler.is_compiling():
            take_note()
        pair = self._standing_in(module)
        if pair is None:
            return y
        if not torch.compiler.is_compiling():
            self._conduct.check(self.target.name, module, self, (args, kwargs), y)
        x = args[0] if args else next(iter(kwargs.values()))
        if self.accumulator is not None:
            require_passing(x, y)
        dropout = self.dropout if module.training else 0.0
        cut = cut_of(module, "weight", self.target.weight.transposed)
        if cut is None:
            y = self.form.forward(y, x, pair, self.s, dropout)
        else:
            y = cut.forward(y, x, pair, self.s)
        return Beside.apply(y, *self.idle) if self.idle else y  # type: ignore

    def _lay_over(self, module: nn.Module, args: object) -> None:
        """Have a module read W + s·B A in the place of its Parameter."""
        if self.bound is None:
            return
        if torch.compiler.is_compiling():
            take_note()
        pair = self._standing_in(module)
        if pair is None:
            return
        weight = self.target.weight
        left, right, scale = self.form.update(weight, pair, self.s)
        left, right = (right.mT, left.mT) if weight.transposed else (left, right)
        W = module._parameters[weight.attribute]
        assert W is not None
        read = with_low_rank(W, left, right, scale)
        read = Beside.apply(read, *self.idle) if self.idle else read  # type: ignore
        module.__dict__[weight.attribute] = read

    def _lift(self, module: nn.Module, *_: object) -> None:
        """Have it read the Parameter again."""
        module.__dict__.pop(self.target.weight.attribute, None)

    def _standing_in(self, module: nn.Module) -> Pair[Tensor] | None:
        """Return the pair to compute with: ``torch.func.functional_call`` puts tensors in.

        It puts them where the factors are, which are computed with then, or where weights are, as
        ``state_dict()`` gives them: such a weight holds the pair already.
        """
        here = None if self.lent is None else self.lent.here()
        if here is not None:
            return self.form.narrow(here, self.r)
        given = [module._parameters.get(weight.attribute) for weight in self.weights]
        if any(value is not None and not isinstance(value, nn.Parameter) for value in given):
            return None
        if torch.compiler.is_compiling() or self._own.see(module, self._held(module)):
            return self.pair
        others = None if self.lent is None else self.lent.others()
        return None if others is None else self.form.narrow(others, self.r)

    def _held(self, module: nn.Module) -> list[Tensor | None]:
        """Return what stands in a module under the weights' names, and the factors'."""
        held = [module._parameters.get(weight.attribute) for weight in self.weights]
        return [*held, *(() if self.lent is None else self.lent.found)]

    @staticmethod
    def _say_at_rest(pair: Pair[nn.Parameter] | None, at_rest: bool) -> None:
        for factor in () if pair is None else tuple(pair):
            factor.at_rest = at_rest  # type: ignore[attr-defined]
