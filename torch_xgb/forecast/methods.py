"""What each method needs for a step, found by running it on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.booster import Booster
from torch_xgb.boosters.forms import form
from torch_xgb.checks import device
from torch_xgb.forecast.footprint import Footprint, byte_count, footprint, truncated
from torch_xgb.forecast.needs import Need
from torch_xgb.forecast.shapes import IN_PYTHON
from torch_xgb.schedule.course import Course
from torch_xgb.settings import Settings
from torch_xgb.targets.layers import Layer
from torch_xgb.weights.merge import carries_over
from torch_xgb.weights.weight import Weight

__all__ = ["Steps", "boosted", "full", "lora"]

_MERGE_CHUNK = 5 * 4 * (1 << 22)  # what a merge into a low-precision weight widens at a time


class Steps:
    """Runs steps of a fake model, shallow ones where its blocks are alike.

    Args:
        model: The model.
        layers: Its layers.
        batch: Its keyword arguments.
        alike: Whether every block is treated alike.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        batch: dict[str, Tensor],
        alike: bool = True,
    ) -> None:
        self.model = model
        self.layers = layers
        self.batch = batch
        self.weights = byte_count([*model.parameters(), *model.buffers()])
        self.stack = _stack(model, layers) if alike else None

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.layers)

    def run(self, depth: int) -> Footprint:
        """Run a step of the first blocks only, or of all.

        Raises:
            ValueError: If the model does not run on shapes alone.
        """
        whole = self.stack is None or depth == self.depth
        with nullcontext() if whole or self.stack is None else truncated(self.stack, depth):
            try:
                return footprint(self.model, self.batch)
            except Exception as error:  # whatever a model's own code raises
                raise ValueError(
                    f"a step of {type(self.model).__name__} cannot be run without weights: "
                    f"{type(error).__name__}: {str(error)[:300]}. {IN_PYTHON}"
                ) from error

    def linear(self) -> tuple[Footprint, Footprint]:
        """Run a step of all blocks, as every one but the first costs the same; and a shallow one's.

        Where every block is run, both are that.
        """
        if self.stack is None or self.depth <= 3:
            whole = self.run(self.depth)
            return whole, whole
        three, two = self.run(3), self.run(2)
        return three.plus(three.minus(two), self.depth - 3), two


def _stack(model: nn.Module, layers: Sequence[Layer]) -> nn.Module | None:
    """Return the list that holds every block and nothing else, if they are all alike."""
    parents = {layer.name.rpartition(".")[0] for layer in layers}
    if len(parents) != 1:
        return None
    stack = model.get_submodule(parents.pop())
    shapes = {
        tuple((n, p.shape, p.dtype) for n, p in block.named_parameters())
        for block in stack.children()
    }
    kinds = getattr(getattr(model, "config", None), "layer_types", None) or [None]
    alike = len(shapes) == 1 and len(set(kinds)) == 1
    return stack if alike and len(list(stack.children())) == len(layers) else None


def boosted(step: Steps, settings: Settings, course: Course) -> Need:
    """Return what boosters need, at the worst draw and on average over uniform ones."""
    shape, drawn, r = form(settings.adapter, settings.bias), course.most_L_s, course.most_r
    room = min(step.depth, max(3, drawn))
    with _frozen(step.model):
        booster = Booster(step.model, step.layers, room, r, shape, settings.lora_dropout)
        booster.attach([])
        worst, least = _extremes(step, booster, drawn)
        itemsize = booster.factors[0].element_size()
        booster.detach()
    places = max(1, step.depth - drawn)
    share = ((step.depth + 1) / (drawn + 1) - 1) / places if step.depth > drawn else 0.0
    mean = worst.plus(least.minus(worst), share)
    sizes = [sum(shape.shapes(t, r).numel for t in layer.targets) for layer in step.layers]
    trained = sum(sorted(sizes, reverse=True)[:drawn])
    # Of pairs that rest values and two moments, of those in training what they began with.
    remembered = 0 if settings.carry is None else 3 * (sum(sizes) - trained) + trained
    weights = [t.weight.parameter for layer in step.layers for t in layer.targets]
    off_card = settings.residual_device is not None and (
        device("residual_device", settings.residual_device).type == "cpu"
    )
    carried = carries_over(settings.merge_precision, weights[0].element_size()) and not off_card
    return Need(
        f"XGBLoRA r={r}",
        trained=trained,
        weights=step.weights,
        saved=worst.saved,
        saved_mean=mean.saved,
        transient=worst.peak - worst.saved,
        factors=itemsize * (4 * trained + remembered),  # values, gradients, two moments
        residual=byte_count(weights) if carried else 0,
        merge=_MERGE_CHUNK if weights[0].element_size() < 4 else 0,
        flops=mean.flops,
    )


def _extremes(step: Steps, booster: Booster, drawn: int) -> tuple[Footprint, Footprint]:
    """Return the worst and the least draw's footprint.

    They are linear in how many blocks lie above the lowest drawn one, and in those drawn.
    """

    def at(lowest: int, total: int, blocks: Sequence[int]) -> Footprint:
        booster.bind([lowest, *blocks], booster.r, 1.0)
        return step.run(total)

    depth = step.depth
    if step.stack is None or depth <= 4 or drawn == 1:
        worst = at(0, depth, range(1, drawn))
        return worst, at(depth - drawn, depth, range(depth - drawn + 1, depth))
    two, three = at(0, 3, [2]), at(0, 3, [1, 2])
    deeper = at(0, 4, [3])
    per_drawn, per_block = three.minus(two), deeper.minus(two)
    worst = two.plus(per_drawn, drawn - 2).plus(per_block, depth - 3)
    lower = at(1, 4, [3]).minus(two)  # one frozen block below
    least = two.plus(per_drawn, drawn - 2).plus(per_block, drawn - 3)
    return worst, least.plus(lower, depth - drawn)


def lora(step: Steps, r: int, dtype: torch.dtype | None) -> Need:
    """Return what PEFT's LoRA on every block needs, its adapters in a dtype or in W's."""
    with _frozen(step.model), ExitStack() as hooks:
        pairs = []
        for layer in step.layers:
            for target in layer.targets:
                *stack, rows, columns = target.shape
                weight = target.weight.parameter
                pair = [
                    nn.Parameter(torch.zeros(size, dtype=dtype or weight.dtype))
                    for size in ((*stack, r, columns), (*stack, rows, r))
                ]
                pairs += pair
                for module in target.modules:
                    for handle in _plain_lora(module, target.weight, *pair):
                        hooks.callback(handle.remove)
        whole, _ = step.linear()
        held = 4 * byte_count(pairs)
    return Need(
        f"LoRA r={r}" if dtype is None else f"LoRA r={r}, float32",
        trained=sum(p.numel() for p in pairs),
        weights=step.weights,
        saved=whole.saved,
        saved_mean=whole.saved,
        transient=whole.peak - whole.saved,
        factors=held,
        residual=0,
        merge=0,
        flops=whole.flops,
    )


def _plain_lora(
    module: nn.Module, weight: Weight, A: Tensor, B: Tensor
) -> Iterator[RemovableHandle]:
    """Add a pair to a module's output, or to the bare Parameter that it reads, as PEFT does."""

    def add(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        h = nn.functional.linear(args[0].to(A.dtype), A)
        return (y + nn.functional.linear(h, B) * 2.0).to(y.dtype)

    def lay_over(module: nn.Module, args: object) -> None:
        W = weight.parameter
        L, R = (A.mT, B.mT) if weight.transposed else (B, A)
        L, R = L.to(W.dtype), R.to(W.dtype)
        read = torch.baddbmm(W, L, R, alpha=2.0) if W.ndim == 3 else torch.addmm(W, L, R, alpha=2.0)
        module.__dict__[weight.attribute] = read

    def lift(module: nn.Module, *_: object) -> None:
        module.__dict__.pop(weight.attribute, None)

    if weight.bare:
        yield module.register_forward_pre_hook(lay_over)
        yield module.register_forward_hook(lift, always_call=True)
    else:
        yield module.register_forward_hook(add)


def full(step: Steps) -> Need:
    """Return what training everything needs: gradients and two moments of every parameter."""
    parameters = list(step.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    size = byte_count(parameters)
    largest = max(p.numel() * p.element_size() for p in parameters)
    whole, shallow = step.linear()
    # Early in backward the activations are there, late in it the gradients: the larger counts. A
    # shallow model's transient is the early one, the logits' and their gradient.
    return Need(
        "full AdamW",
        trained=sum(p.numel() for p in parameters),
        weights=step.weights,
        saved=whole.saved,
        saved_mean=whole.saved,
        transient=shallow.peak - shallow.saved,
        factors=2 * size,
        residual=0,
        merge=size + 2 * largest,
        flops=whole.flops,
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    before = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
