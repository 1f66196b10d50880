"""A plan before training: parameters, FLOPs and memory of a step, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_xgb.booster import Booster
from torch_xgb.checkpointing import Checkpointing
from torch_xgb.footprint import Footprint, byte_count, footprint, truncated
from torch_xgb.forms import LoRA
from torch_xgb.settings import finite_positive, one_of, positive_integer
from torch_xgb.shapes import IN_PYTHON, fake_batch, fake_model, unpacked
from torch_xgb.targets import Layer, check_rank, select_layers

__all__ = ["RESERVE", "Forecast", "Need", "plan"]

GIB = 2**30
RESERVE = 0.75  # GiB of a card that a CUDA context and fragmentation take
_MERGE_CHUNK = 5 * 4 * (1 << 22)  # what a merge into a low-precision weight widens at a time


@dataclass(frozen=True)
class Need:
    """What a method needs for a step, in bytes.

    Attributes:
        name: The method's.
        trained: Parameters trained at a time.
        weights: The model's parameters and buffers.
        saved: Activations kept for backward, at the worst draw.
        saved_mean: The same, averaged over uniform draws.
        transient: The most held beside them during forward and backward: logits and their
            gradient, a block's own temporaries.
        factors: Trained parameters beside the model's, gradients and AdamW's state.
        residual: What bfloat16 merges carry over, of the targets' size, beside the weights.
        merge: Temporaries of a merge, or of AdamW's step.
        flops: Of forward and backward, averaged over uniform draws.
    """

    name: str
    trained: int
    weights: float
    saved: float
    saved_mean: float
    transient: float
    factors: float
    residual: float
    merge: float
    flops: float

    @property
    def peak(self) -> float:
        """The most bytes held at once, at the worst draw."""
        return self._held + max(self.saved + self.transient, self.merge)

    def largest_batch(self, batch: int, room: float) -> int:
        """Return the largest batch that fits: activations are in proportion to it."""
        if self._held + self.merge > room:
            return 0
        return int((room - self._held) // ((self.saved + self.transient) / batch))

    @property
    def _held(self) -> float:
        return self.weights + self.factors + self.residual


@dataclass(frozen=True)
class Forecast:
    """What a plan found.

    Attributes:
        model: Its class's name.
        parameters: How many the model has.
        blocks: How many may be drawn.
        targets: How many linear maps they hold.
        drawn: L_s.
        batch: Rows of a batch.
        length: Tokens of a row; 0 of given inputs without ``input_ids``.
        needs: XGBLoRA's, LoRA's and full fine-tuning's.
        card: GiB of the card asked about, or None.
    """

    model: str
    parameters: int
    blocks: int
    targets: int
    drawn: int
    batch: int
    length: int
    needs: tuple[Need, ...]
    card: float | None = None

    def fits(self, need: Need) -> bool | None:
        """Whether a method fits the card, 0.75 GiB of it left for the driver; None without one."""
        return None if self.card is None else need.peak <= self._room

    def largest_batch(self, need: Need) -> int | None:
        """Return the largest batch of this length that fits the card; None without one."""
        return None if self.card is None else need.largest_batch(self.batch, self._room)

    @property
    def _room(self) -> float:
        assert self.card is not None
        return (self.card - RESERVE) * GIB

    def __str__(self) -> str:
        head = f"{self.model}: {self.parameters:,} parameters; {self.targets} targets in "
        size = f"{self.batch} x {self.length} tokens" if self.length else f"batch of {self.batch}"
        head += f"{self.blocks} blocks, {self.drawn} drawn; {size}\n\n"
        columns = ["", *(need.name for need in self.needs)]
        rows = [columns, *([label, *map(cell, self.needs)] for label, cell in self._cells())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        return head + "\n".join(_line(row, widths) for row in rows)

    def _cells(self) -> list[tuple[str, Callable[[Need], str]]]:
        def gib(field: str) -> Callable[[Need], str]:
            return lambda need: f"{getattr(need, field) / GIB:.3f}"

        cells: list[tuple[str, Callable[[Need], str]]] = [
            ("trained at a time, head aside", lambda n: f"{n.trained:,}"),
            ("  of the model, per mille", lambda n: f"{1e3 * n.trained / self.parameters:.3f}"),
            ("TFLOPs a step", lambda n: f"{n.flops / 1e12:.3f}"),
            ("peak memory, GiB", gib("peak")),
            ("  weights", gib("weights")),
            ("  activations, worst draw", gib("saved")),
            ("    mean over draws", gib("saved_mean")),
            ("  largest transient", gib("transient")),
            ("  factors, gradients, state", gib("factors")),
            ("  residual", gib("residual")),
            ("merge or update temporaries", gib("merge")),
        ]
        if self.card is not None:
            cells.append((f"fits {self.card:g} GiB", lambda n: "yes" if self.fits(n) else "no"))
            cells.append(("  largest batch", lambda n: str(self.largest_batch(n))))
        return cells


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:]])


def plan(
    model: Any,  # noqa: ANN401
    *,
    batch: int = 1,
    length: int = 512,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
    card: float | None = None,
    r: int = 1,
    layers_per_booster: int | None = None,
    lora_r: int = 8,
    merge_precision: str = "auto",
    residual_device: str | None = None,
    target_modules: str | Sequence[str] = "all-linear",
    inputs: Mapping[str, Tensor] | None = None,
) -> Forecast:
    """Predict what a training step needs, without weights, GPU or network.

    The step is run on fake tensors, operator by operator, on a few of the blocks; since blocks are
    alike, the rest follows exactly. Memory is that of torch's allocator with AdamW as the base: a
    kernel's own scratch, a CUDA context and fragmentation are not in it.

    Args:
        model: A known name (``torch_xgb.shapes.KNOWN``), a folder with a ``config.json``, a
            transformers config, or a module, whose dtype counts.
        batch: Rows.
        length: Tokens a row.
        dtype: Of the weights.
        checkpointing: Compute each block that backward reaches again, as the optimizer's
            ``checkpointing=True`` does.
        card: GiB of a card to be judged by.
        r: The boosters' rank.
        layers_per_booster: L_s; None is a third of the blocks.
        lora_r: The rank of the LoRA compared with.
        merge_precision: As the optimizer's; "auto" and "residual" keep a residual of bfloat16.
        residual_device: As the optimizer's; with "cpu" the residual is not on the card.
        target_modules: As the optimizer's.
        inputs: The keyword arguments of a call, for models other than transformers' or other than
            of text: then batch and length are theirs.

    Raises:
        ImportError: If transformers is needed and missing.
        ValueError: If the model is unknown, has no targets, or cannot be run without weights; or if
            an argument is out of range.
    """
    r, lora_r = positive_integer("r", r), positive_integer("lora_r", lora_r)
    card = None if card is None else finite_positive("card", card)
    off_card = residual_device is not None and _device(residual_device).type == "cpu"
    batch, length = positive_integer("batch", batch), positive_integer("length", length)
    one_of("merge_precision", merge_precision, ("auto", "nearest", "stochastic", "residual"))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = fake_model(model, dtype, mode).train()
    with mode, unpacked():
        if inputs is None:
            given = fake_batch(fake, batch, length)
        else:
            given = _faked(inputs, mode)
            batch, length = _size(given)
        layers = select_layers(fake, target_modules, None)
        check_rank(max(r, lora_r), layers)
        drawn = max(1, len(layers) // 3) if layers_per_booster is None else layers_per_booster
        drawn = min(positive_integer("layers_per_booster", drawn), len(layers))
        if checkpointing:
            Checkpointing(fake, True).attach()
        step = _Steps(fake, layers, given)
        needs: tuple[Need, ...] = (
            _boosted(step, r, drawn, "nearest" if off_card else merge_precision),
            _lora(step, lora_r, None),
            _lora(step, lora_r, torch.float32),
            _full(step),
        )
    if next(fake.parameters()).dtype == torch.float32:
        needs = (*needs[:2], needs[3])  # PEFT's adapters are float32 either way
    count = sum(p.numel() for p in fake.parameters())
    targets = sum(len(layer.targets) for layer in layers)
    name = model if isinstance(model, str) else type(fake).__name__
    return Forecast(name, count, len(layers), targets, drawn, batch, length, needs, card)


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"residual_device: {error}") from error


def _size(inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return rows and tokens a row; 0 tokens where there are none."""
    ids = inputs.get("input_ids")
    first = next(iter(inputs.values())) if ids is None else ids
    return first.shape[0], 0 if ids is None else ids.shape[1]


def _faked(inputs: Mapping[str, Tensor], mode: FakeTensorMode) -> dict[str, Tensor]:
    return {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}


class _Steps:
    """Runs steps of a fake model, shallow ones where its blocks are alike."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], batch: dict[str, Tensor]) -> None:
        self.model = model
        self.layers = layers
        self.batch = batch
        self.weights = byte_count([*model.parameters(), *model.buffers()])
        self.stack = _stack(model, layers)

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


def _boosted(step: _Steps, r: int, drawn: int, merge_precision: str) -> Need:
    """Boosters: linear in how many blocks lie above the lowest drawn one, and in those drawn."""
    depth, form = step.depth, LoRA()
    with _frozen(step.model):
        booster = Booster(step.layers, min(depth, max(3, drawn)), r, form, 0.0)
        booster.attach(step.model, [])

        def at(lowest: int, total: int, blocks: Sequence[int]) -> Footprint:
            booster.bind([lowest, *blocks], r, 1.0)
            return step.run(total)

        if step.stack is None or depth <= 4 or drawn == 1:
            worst = at(0, depth, range(1, drawn))
            least = at(depth - drawn, depth, range(depth - drawn + 1, depth))
        else:
            two, three = at(0, 3, [2]), at(0, 3, [1, 2])
            deeper = at(0, 4, [3])
            per_drawn, per_block = three.minus(two), deeper.minus(two)
            worst = two.plus(per_drawn, drawn - 2).plus(per_block, depth - 3)
            lower = at(1, 4, [3]).minus(two)  # one frozen block below
            least = two.plus(per_drawn, drawn - 2).plus(per_block, drawn - 3)
            least = least.plus(lower, depth - drawn)
        itemsize = booster.factors[0].element_size()
        trained = sum(_sizes(form, step.layers, drawn, r))
        booster.detach()
    places = max(1, depth - drawn)
    share = ((depth + 1) / (drawn + 1) - 1) / places if depth > drawn else 0.0
    mean = worst.plus(least.minus(worst), share)
    first = step.layers[0].targets[0].weight.parameter
    low = first.element_size() < 4
    targets = [t.weight.parameter for layer in step.layers for t in layer.targets]
    held = 4 * itemsize * trained  # values, gradients, two moments
    carries = merge_precision == "residual" or (merge_precision == "auto" and low)
    return Need(
        f"XGBLoRA r={r}",
        trained=trained,
        weights=step.weights,
        saved=worst.saved,
        saved_mean=mean.saved,
        transient=worst.peak - worst.saved,
        factors=held,
        residual=byte_count(targets) if carries else 0,
        merge=_MERGE_CHUNK if low else 0,
        flops=mean.flops,
    )


def _sizes(form: LoRA, layers: Sequence[Layer], drawn: int, r: int) -> list[int]:
    """Return how many numbers the factors of each of the richest blocks are."""
    per_layer = [
        sum(a * b for target in layer.targets for a, b in form.sizes(target, r)) for layer in layers
    ]
    return sorted(per_layer, reverse=True)[:drawn]


def _lora(step: _Steps, r: int, dtype: torch.dtype | None) -> Need:
    """LoRA on every block as PEFT computes it, its adapters in a dtype of their own or W's."""
    with _frozen(step.model), ExitStack() as hooks:
        pairs = []
        for layer in step.layers:
            for target in layer.targets:
                rows, columns = target.shape
                weight = target.weight.parameter
                pair = [
                    nn.Parameter(torch.zeros(size, dtype=dtype or weight.dtype))
                    for size in ((r, columns), (rows, r))
                ]
                pairs += pair
                for module in target.modules:
                    hooks.callback(module.register_forward_hook(_plain_lora(*pair)).remove)
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


def _plain_lora(A: Tensor, B: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        h = nn.functional.linear(args[0].to(A.dtype), A)
        return (y + nn.functional.linear(h, B) * 2.0).to(y.dtype)

    return hook


def _full(step: _Steps) -> Need:
    """Train everything: gradients and two moments of every parameter."""
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
