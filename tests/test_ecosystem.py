"""In existing code: what torch, transformers and training loops do to an optimizer."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.checkpoint import checkpoint

from anatomy import anatomy, same, same_values, values
from tiny import Stack, batches, quick, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train
from zoo import ZOO


def boosted(
    model: nn.Module, optimizer_class: Any = torch.optim.AdamW, **settings: Any
) -> BoostedLowRankOptimizer:
    settings = {"lr": 0.02, "kappa": 3, "r": 2, "layers_per_booster": 2, **settings}
    return BoostedLowRankOptimizer(optimizer_class, model, **settings)


def everything(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> tuple[Any, ...]:
    return values(model), optimizer.state_dict(), optimizer.booster_index, optimizer.booster_step


# Mixed precision.


def test_grad_scaler_with_an_overflow() -> None:
    """The scaler skips that step: it does not count, and the run is that of the others."""
    model, twin, data = (
        stack(dtype=torch.float32),
        stack(dtype=torch.float32),
        batches(7, torch.float32),
    )
    optimizer, plain = boosted(model), boosted(twin)
    train(twin, plain, data)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    overflow = {0, 3, 5}
    taken = 0
    for step, (x, y) in enumerate(data):
        for spoilt in (True, False) if step in overflow else (False,):
            loss = cross_entropy(model(x), y)
            scaler.scale(loss * (torch.inf if spoilt else 1)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1e6)
            before = values(model)
            scaler.step(optimizer)
            assert same_values(model, before) == spoilt
            scaler.update()
            optimizer.zero_grad()
            taken += not spoilt
            assert (optimizer.booster_index, optimizer.booster_step) == divmod(taken, 3)
    assert scaler.get_scale() == 2.0**7
    for name, tensor in values(model).items():
        torch.testing.assert_close(tensor, values(twin)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_unscales_once(fused: bool) -> None:
    """A fused base can unscale by itself; it must not be left to, nor do it twice."""
    model, twin, data = (
        stack(dtype=torch.float32),
        stack(dtype=torch.float32),
        batches(7, torch.float32),
    )
    optimizer, plain = (boosted(m, fused=fused) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    train(twin, plain, data)
    for x, y in data:
        scaler.scale(cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert optimizer.booster_index == 2
    for name, tensor in values(model).items():
        torch.testing.assert_close(tensor, values(twin)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    """Factors and their gradients stay float32; the result is autocast's, near the float32 run."""
    model, twin, data = (stack(kind=kind, dtype=torch.float32) for _ in range(3))
    data = batches(7, torch.float32)
    optimizer, plain = boosted(model, torch.optim.SGD), boosted(twin, torch.optim.SGD)
    log = train(twin, plain, data)
    losses = []
    for x, y in data:
        with torch.autocast("cpu", dtype=dtype):
            output = model(x)
        assert output.dtype == dtype
        loss = cross_entropy(output.float(), y)
        loss.backward()
        gradients = [f.grad for pair in optimizer.active_factors.values() for f in pair]
        assert {g.dtype for g in gradients} == {torch.float32}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(log.losses, rel=2e-2)
    for name, tensor in values(model).items():
        torch.testing.assert_close(tensor, values(twin)[name], rtol=0, atol=2e-2)


def test_autocast_adds_the_pair() -> None:
    """The share of a large pair shows: it is not lost between the dtypes."""
    model = stack(depth=1, dtype=torch.float32)
    optimizer = boosted(model)
    with torch.no_grad():
        for A, B in optimizer.active_factors.values():
            A.fill_(0.3)
            B.fill_(0.3)
    x = batches(1, torch.float32)[0][0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x)
    torch.testing.assert_close(mixed.float(), model(x), rtol=5e-2, atol=5e-2)
    optimizer.merge()
    torch.testing.assert_close(mixed.float(), model(x), rtol=5e-2, atol=5e-2)


# Schedules.


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: LambdaLR(o, lambda step: 0.9**step),
    "exponential": lambda o: ExponentialLR(o, 0.8),
    "one-cycle": lambda o: OneCycleLR(o, max_lr=0.05, total_steps=12),
    "cyclic": lambda o: CyclicLR(o, 0.001, 0.05, step_size_up=2, cycle_momentum=True),
    "restarts": lambda o: CosineAnnealingWarmRestarts(o, 4),
    "sequential": lambda o: SequentialLR(
        o, [LambdaLR(o, lambda step: (step + 1) / 4), ExponentialLR(o, 0.8)], milestones=[3]
    ),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5),
}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str, base: Any, saved: bool) -> None:
    """Every group follows the schedule that a plain optimizer of this class would follow."""
    kwargs = {"momentum": 0.9} if base is torch.optim.SGD else {}
    model = stack()
    optimizer = boosted(model, base, modules_to_save=["head"] if saved else [], **kwargs)
    plain = base([nn.Parameter(torch.zeros(1))], lr=0.02, **kwargs)
    scheduler, its = SCHEDULERS[name](optimizer), SCHEDULERS[name](plain)
    followed = []
    for x, y in batches(10):
        cross_entropy(model(x), y).backward()
        used = optimizer.base.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad()
        plain.param_groups[0]["params"][0].grad = torch.zeros(1)
        plain.step()
        for s in (scheduler, its):
            s.step(1.0) if name == "plateau" else s.step()
        followed.append(used)
        keys = ("lr", "betas" if base is torch.optim.AdamW else "momentum")
        for group in optimizer.param_groups:
            assert all(group[key] == plain.param_groups[0][key] for key in keys)
    assert len(set(followed)) > 2
    assert optimizer.booster_index == 3


def test_scheduler_made_before_the_optimizer_is_saved_and_loaded() -> None:
    """``load_state_dict`` replaces the group dicts; schedules must set the new ones."""
    model = stack()
    optimizer = boosted(model)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, batches(2), schedulers=[scheduler])
    assert optimizer.param_groups[0]["lr"] == optimizer.base.param_groups[0]["lr"] == 0.02 / 4


def test_clipping_by_value_and_grad_hooks() -> None:
    model = stack()
    optimizer = boosted(model)
    seen: list[int] = []
    for p in optimizer.param_groups[0]["params"]:
        p.register_post_accumulate_grad_hook(lambda p: seen.append(id(p)))
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-4)
    assert len(set(seen)) == len(optimizer.param_groups[0]["params"])
    assert all(p.grad.abs().max() <= 1e-4 for p in optimizer.param_groups[0]["params"])


# Copies.


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved_whole(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole])
@pytest.mark.parametrize("precision", ["nearest", "stochastic", "residual"])
def test_model_and_optimizer_copied_together(copied: Callable[[Any], Any], precision: str) -> None:
    """The copy goes on by itself, as the original does."""
    data = batches(9, torch.bfloat16)
    model = stack(dtype=torch.bfloat16)
    optimizer = boosted(model, merge_precision=precision, modules_to_save=["head"])
    train(model, optimizer, data[:4])
    twin, its_optimizer = copied((model, optimizer))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    before = copy.deepcopy(everything(model, optimizer))
    train(twin, its_optimizer, data[4:])
    assert same(everything(model, optimizer), before)
    train(model, optimizer, data[4:])
    assert same(everything(model, optimizer), everything(twin, its_optimizer))
    assert its_optimizer.finalize() is twin
    assert same(dict(optimizer.finalize().state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole])
@pytest.mark.parametrize("scheduled", [False, True])
def test_optimizer_copied_alone(copied: Callable[[Any], Any], scheduled: bool) -> None:
    """It brings its model along; a scheduler's patch of ``step`` does not travel."""
    model, data = stack(), batches(8)
    optimizer = boosted(model)
    if scheduled:
        LambdaLR(optimizer, lambda step: 1.0)
    train(model, optimizer, data[:4])
    twin = copied(optimizer)
    train(model, optimizer, data[4:])
    its_model = twin.model if hasattr(twin, "model") else twin.finalize()
    assert its_model is not model
    train(its_model, twin, data[4:])
    assert same(everything(its_model, twin), everything(model, optimizer))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole])
def test_model_copied_alone(copied: Callable[[Any], Any]) -> None:
    """A snapshot computes and saves what the model does now, whatever comes after."""
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(4))
    x = batches(1, seed=3)[0][0]
    now, saved = model(x).detach(), {n: t.clone() for n, t in model.state_dict().items()}
    twin = copied(model)
    train(model, optimizer, batches(4))
    torch.testing.assert_close(twin(x), now, rtol=1e-12, atol=1e-12)
    assert same(dict(twin.state_dict()), saved)
    plain = stack(seed=1)
    plain.load_state_dict(twin.state_dict())
    torch.testing.assert_close(plain(x), now, rtol=1e-12, atol=1e-12)
    assert not torch.equal(model(x), now)


def test_averaged_model() -> None:
    """torch's own averaging copies the model and walks both parameter lists: the merged weights."""
    model = stack()
    before, x = anatomy(model), batches(1, seed=3)[0][0]
    optimizer = boosted(model)
    train(model, optimizer, batches(1))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    mean = {name: torch.zeros_like(p) for name, p in stack().named_parameters()}
    for count in range(1, 8):
        train(model, optimizer, batches(1, seed=count))
        averaged.update_parameters(model)
        weights = dict(model.named_parameters())
        for name, value in mean.items():
            value += (weights[name].detach() - value) / count
    assert optimizer.booster_index > 1
    plain = stack(seed=1)
    plain.load_state_dict(mean)
    torch.testing.assert_close(averaged(x), plain(x), rtol=1e-12, atol=1e-12)
    assert averaged.module.state_dict().keys() == plain.state_dict().keys()
    optimizer.finalize()
    assert anatomy(model) == before


def test_a_copy_that_is_given_every_state_dict() -> None:
    """As timm averages: both models' entries side by side, the copy's changed in place."""
    model, x = stack(), batches(1, seed=3)[0][0]
    optimizer = boosted(model)
    train(model, optimizer, batches(1))
    twin = copy.deepcopy(model)
    for seed in range(7):
        train(model, optimizer, batches(1, seed=seed))
        for own, theirs in zip(
            twin.state_dict().values(), model.state_dict().values(), strict=True
        ):
            own.copy_(theirs)
        torch.testing.assert_close(twin(x), model(x), rtol=1e-12, atol=1e-12)


def test_an_average_of_state_dicts_is_that_of_the_functions_weights() -> None:
    """As docs/how-to/saving.md has it: beside a plain model that is given every step's weights."""
    model, plain, data = stack(), stack(), batches(7)
    optimizer = boosted(model)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [torch.zeros_like(p) for p in plain.parameters()]
    for count, batch in enumerate(data, 1):
        train(model, optimizer, [batch])
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 / count)
        plain.load_state_dict(copy.deepcopy(model.state_dict()))
        torch.testing.assert_close(plain(batch[0]), model(batch[0]), rtol=1e-12, atol=1e-12)
        for mean, parameter in zip(wanted, plain.parameters(), strict=True):
            mean += (parameter.detach() - mean) / count
    optimizer.finalize().load_state_dict(average)
    for parameter, mean in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), mean, rtol=1e-12, atol=1e-12)


# Gradient checkpointing.


class Checkpointed(Stack):
    use_reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.head(x.mean(-2))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointed_blocks(use_reentrant: bool, dropout: float) -> None:
    """Recomputation sees the same factors and drops the same inputs: equal trajectories."""
    ends = []
    for cls in (Stack, Checkpointed):
        model = stack()
        model.__class__ = cls
        model.use_reentrant = use_reentrant
        # Reentrant checkpointing passes gradients on only from inputs that require them.
        model.embed.register_forward_hook(lambda module, args, y: y.requires_grad_())
        optimizer = boosted(model, lora_dropout=dropout)
        torch.manual_seed(0)
        log = train(model, optimizer, batches(8))
        ends.append((torch.tensor(log.losses), dict(optimizer.finalize().state_dict())))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_of_transformers(name: str, use_reentrant: bool) -> None:
    species, ends = ZOO[name], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = species.build().double()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        optimizer = boosted(model)
        batch = species.batch()
        losses = []
        for _ in range(7):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        ends.append((torch.tensor(losses), dict(optimizer.finalize().state_dict())))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_without_input_gradients_is_never_silent() -> None:
    """torch gives no gradients: the step says which targets went without and what to do."""
    model = stack()
    model.__class__ = Checkpointed
    model.use_reentrant = True
    optimizer = boosted(model, modules_to_save=["head"])
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="use_reentrant") as error:
        optimizer.step()
    assert next(iter(optimizer.active_factors)) in str(error.value)


# torch.compile.


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


SMALL = {"kappa": 2, "layers_per_booster": 1, "r": 1}


def eager_losses(steps: int) -> list[float]:
    model = quick()
    return train(model, boosted(model, **SMALL), batches(steps)).losses


# Dynamo reads .grad of every input, and a compiled block's input is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["whole", "in place", "blocks", "wrapped"])
def test_compile(fresh_compiler: None, how: str, when: str) -> None:
    """Boosters drawn anew each time: the compiled model computes what eager does.

    Dynamo does not guard on hooks registered after it has traced a module; a booster that moved
    into other blocks would then not be seen.
    """
    model, data = quick(), batches(8)
    before = anatomy(model)
    forward: Any = model

    def compile_() -> Any:
        if how in ("whole", "wrapped"):
            return torch.compile(model, backend="aot_eager")
        if how == "in place":
            model.compile(backend="aot_eager")
        else:
            for block in model.blocks:
                block.compile(backend="aot_eager")
        return model

    if when == "before":
        forward = compile_()
        x = batches(1)[0][0]
        forward(x)  # traced without boosters
        optimizer = boosted(forward if how == "wrapped" else model, **SMALL)
    else:
        optimizer = boosted(model, **SMALL)
        forward = compile_()
    log = train(model, optimizer, data, forward=forward)
    assert len({tuple(layers) for layers in log.drawn.values()}) > 1
    assert optimizer.booster_index == 4
    assert log.losses == pytest.approx(eager_losses(8), rel=1e-9)
    x = batches(1, seed=4)[0][0]
    pending = forward(x).detach()
    optimizer.finalize()
    torch.testing.assert_close(forward(x), pending, rtol=1e-9, atol=1e-9)
    assert [row[:2] for row in anatomy(model)] == [row[:2] for row in before]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_compile_blocks_after_a_first_look(fresh_compiler: None, how: str) -> None:
    """Models are often evaluated untrained, before a compiler is put to work on them."""
    model, data = quick(), batches(8)
    optimizer = boosted(model, **SMALL)
    with torch.no_grad():
        model(data[0][0])
    for i, block in enumerate(model.blocks):
        if how == "replaced":
            model.blocks[i] = torch.compile(block, backend="aot_eager")
        else:
            block.compile(backend="aot_eager")
    losses = train(model, optimizer, data).losses
    assert losses == pytest.approx(eager_losses(8), rel=1e-9)


def test_compile_of_a_frozen_model(fresh_compiler: None) -> None:
    """Traced before, with nothing about its parameters that attaching changes."""
    model, twin, data = quick(), quick(), batches(6)
    forward = torch.compile(model.requires_grad_(False), backend="aot_eager")
    forward(data[0][0])
    log = train(model, boosted(model, **SMALL), data, forward=forward)
    expected = train(twin, boosted(twin.requires_grad_(False), **SMALL), data).losses
    assert log.losses == pytest.approx(expected, rel=1e-9)


def test_an_optimizer_leaves_what_is_compiled_elsewhere(fresh_compiler: None) -> None:
    """A teacher, a loss, a metric: building an optimizer for another model recompiles none."""
    graphs = 0

    def counting(graph: Any, inputs: object) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    teacher, x = quick(), batches(1)[0][0]
    forward = torch.compile(teacher, backend=counting)
    forward(x)
    first, model = graphs, quick()
    optimizer = boosted(model, **SMALL)
    train(model, optimizer, batches(2))
    forward(x)
    optimizer.finalize()
    forward(x)
    assert graphs == first == 1


def test_a_compiled_step_is_not_traced(fresh_compiler: None) -> None:
    """Merging, drawing and forgetting are no tensor program: traced, they took minutes."""
    model, twin = quick(), quick()
    optimizer, plain = boosted(model, **SMALL), boosted(twin, **SMALL)
    traced = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        traced.append(graph)
        return graph

    step = torch.compile(lambda: optimizer.step(), backend=backend)
    for x, y in batches(5):
        cross_entropy(model(x), y).backward()
        step()
        optimizer.zero_grad()
    train(twin, plain, batches(5))
    assert same_values(model, values(twin))
    assert not traced


def test_compile_in_evaluation(fresh_compiler: None) -> None:
    """A graph traced for evaluation in one booster must not answer for the next."""
    model, twin = quick(), quick()
    optimizer, plain = boosted(model, **SMALL), boosted(twin, **SMALL)
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in batches(6):
        train(model, optimizer, [batch], forward=forward)
        train(twin, plain, [batch])
        with torch.no_grad():
            torch.testing.assert_close(forward(batch[0]), twin(batch[0]), rtol=1e-9, atol=1e-9)


def test_compile_recompiles_a_bounded_number_of_times(fresh_compiler: None) -> None:
    """After each block has been seen with and without a pair, nothing is traced anew."""
    traced = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal traced
        traced += 1
        return graph

    model = quick()
    optimizer = boosted(model, kappa=1, layers_per_booster=1)
    forward = torch.compile(model, backend=backend)
    train(model, optimizer, batches(10), forward=forward)
    first = traced
    train(model, optimizer, batches(10), forward=forward)
    assert traced == first <= 6


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("how", "sampler", "draws", "most"),
    [
        ("blocks", "uniform", 15, 4),  # whatever is drawn: with and without a pair, and gradients
        ("whole", "window", 5, 6),  # one for each draw, and one without boosters
        ("whole", "in turns", 3, 4),
    ],
)
def test_compile_once_for_each_draw_or_kind_of_block(
    fresh_compiler: None, how: str, sampler: str, draws: int, most: int
) -> None:
    """Six blocks, two drawn: later draws find their graphs, and blocks share theirs."""
    traced = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal traced
        traced += 1
        return graph

    def in_turns(seed: int, t: int, num_layers: int, layers_per_booster: int) -> list[int]:
        first = layers_per_booster * (t % (num_layers // layers_per_booster))
        return list(range(first, first + layers_per_booster))

    model, seen = quick(6), set()
    rule: Any = in_turns if sampler == "in turns" else sampler
    optimizer = boosted(model, kappa=1, layers_per_booster=2, layer_sampler=rule)
    optimizer.on_merge(lambda report: seen.add(report.layers))
    forward: Any = None
    if how == "whole":
        forward = torch.compile(model, backend=backend)
    else:
        for block in model.blocks:
            block.compile(backend=backend)
    train(model, optimizer, batches(40), forward=forward)
    assert traced <= most and 3 <= len(seen) <= draws


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_with_checkpoints_make_one_graph_each(fresh_compiler: None) -> None:
    """Nothing of a pair is a side effect, which a checkpoint in a graph may not have.

    Nor is a block without a backward pass to be computed again, which draws random numbers.
    """
    losses = []
    for compiled in (False, True):
        model = quick()
        for block in model.blocks:
            block.append(nn.Dropout(1e-12))
        optimizer = boosted(model, **SMALL, checkpointing=True)
        for block in model.blocks if compiled else ():
            block.compile(backend="aot_eager", fullgraph=True)
        losses.append(train(model, optimizer, batches(6)).losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_compile_of_transformers(fresh_compiler: None) -> None:
    species = ZOO["llama"]
    losses: list[list[float]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = species.build().double()
        optimizer = boosted(model, **SMALL)
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        batch, log = species.batch(), []
        for _ in range(6):
            loss = forward(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.append(loss.item())
        losses.append(log)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


# transformers' own saving.


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_save_pretrained(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """In the midst of a booster: what is loaded computes what the model computes."""
    species = ZOO[name]
    model = species.build().to(dtype).eval()
    optimizer = boosted(model, lr=0.01)
    batch = species.batch()
    for _ in range(5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.booster_step == 2
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype).eval()
    saved = model.state_dict()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in loaded.state_dict().items())
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, **tolerance)


def test_generation() -> None:
    """``generate`` with its key-value cache, in the midst of a booster."""
    model = ZOO["llama"].build().double().eval()
    optimizer = boosted(model, lr=0.05)
    batch = ZOO["llama"].batch()
    for _ in range(5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens = model.generate(batch["input_ids"], max_new_tokens=5, do_sample=False)
    optimizer.finalize()
    assert torch.equal(
        model.generate(batch["input_ids"], max_new_tokens=5, do_sample=False), tokens
    )


def test_functional_call_and_swapped_parameters() -> None:
    """``torch.func.functional_call`` with the model's own tensors computes the same."""
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(2))
    x = batches(1)[0][0]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert torch.equal(torch.func.functional_call(model, tensors, (x,)), model(x))


def test_switching_between_training_and_evaluation() -> None:
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(2))
    assert not any(m.training for m in model.eval().modules())
    assert all(m.training for m in model.train().modules())
    optimizer.finalize()


def test_more_parameters_in_a_group_of_their_own() -> None:
    """``add_param_group`` as on any optimizer; the group keeps its state between boosters."""
    model = stack()
    optimizer = boosted(model, torch.optim.SGD, momentum=0.9)
    extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 1.0})
    mirror = nn.Parameter(extra.detach().clone())
    plain = torch.optim.SGD([mirror], lr=1.0, momentum=0.9)
    for x, y in batches(5):
        (cross_entropy(model(x), y) + extra.square().sum()).backward()
        mirror.square().sum().backward()
        optimizer.step()
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    assert torch.equal(extra, mirror)
    assert optimizer.booster_index == 1
