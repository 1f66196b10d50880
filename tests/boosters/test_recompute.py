"""``checkpointing=``: the same results with less kept, in any model, and nothing left behind."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import DynamicCache

from anatomy import anatomy, same
from benchmarks.measures.memory import peak_memory
from benchmarks.methods.contenders import boosted as contender
from benchmarks.subjects.llama import Size
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.forecast.footprint import Footprint, footprint
from training import train
from zoo import ZOO

SIZE = Size(blocks=6, hidden=32, intermediate=64, heads=2, vocabulary=32, batch=1, tokens=32)


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    settings = {"lr": 0.02, "kappa": 3, "r": 2, "layers_per_booster": 2, **settings}
    return BoostedLowRankOptimizer(AdamW, model, **settings)


@pytest.mark.parametrize("share", [True, 0.5, 1])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_results_are_the_same_bitwise(share: float, dropout: float) -> None:
    """Recomputation sees the same factors and drops the same inputs."""
    ends = []
    for checkpointing in (False, share):
        model = stack(4)
        optimizer = boosted(model, lora_dropout=dropout, checkpointing=checkpointing)
        torch.manual_seed(0)
        log = train(model, optimizer, batches(8))
        ends.append((log.losses, dict(optimizer.finalize().state_dict())))
    assert same(*ends)


@pytest.mark.parametrize(
    "settings",
    [{"init": "gradient"}, {"adapter": "direft"}, {"bias": "targets", "modules_to_save": ["head"]}],
    ids=["gradient", "direft", "bias"],
)
def test_results_of_the_family_are_the_same_bitwise(settings: dict[str, Any]) -> None:
    ends = []
    for checkpointing in (False, True):
        model = stack(4)
        optimizer = boosted(model, checkpointing=checkpointing, **settings)
        log = train(model, optimizer, batches(8), clip=0.3)
        ends.append((log.losses, dict(optimizer.finalize().state_dict())))
    assert same(*ends)


def test_results_under_autocast_are_the_same_bitwise() -> None:
    losses = []
    for checkpointing in (False, True):
        model, data = stack(3, dtype=torch.float32), batches(6, torch.float32)
        optimizer = boosted(model, checkpointing=checkpointing)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(train(model, optimizer, data).losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_architecture_computes_the_same(name: str) -> None:
    """Outputs as tensors and tuples, keyword arguments, caches; the models' own dropout is on."""
    species, losses = ZOO[name], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, batch, log = species.build().train(), species.batch(), []
        told = {"kappa": 2, "r": 1, "unused": "skip", "target_parameters": []}
        optimizer = boosted(model, checkpointing=checkpointing, **told)
        for step in range(4):
            torch.manual_seed(step)
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.append(loss.item())
        losses.append(log)
    assert losses[0] == losses[1]


def step_of(checkpointing: float, lowest: int) -> Footprint:
    model, ids = SIZE.model(), SIZE.ids()
    made = contender(model, {}, 2, checkpointing=checkpointing)
    assert made.aim is not None
    made.aim(lowest)
    return footprint(model, {"input_ids": ids, "labels": ids})


def test_less_is_held_and_the_peak_falls() -> None:
    whole, half, none = (step_of(share, 0) for share in (True, 0.5, False))
    assert whole.saved < half.saved < none.saved
    assert whole.peak < half.peak < none.peak
    assert whole.peak < 0.5 * none.peak
    assert none.flops < half.flops < whole.flops
    # Of a block that backward reaches, its input is held and nothing else.
    deeper = step_of(True, 0).saved - step_of(True, 3).saved
    assert deeper == 3 * 4 * SIZE.tokens * SIZE.hidden


def test_the_peak_of_a_real_step() -> None:
    def peak(checkpointing: bool) -> int:
        model, ids = SIZE.model(), SIZE.ids()
        batch = {"input_ids": ids, "labels": ids}
        step = contender(model, batch, 2, checkpointing=checkpointing).step
        step()
        return peak_memory(step, torch.device("cpu"))

    assert peak(True) < 0.5 * peak(False)


def test_blocks_below_the_lowest_drawn_one_are_computed_once() -> None:
    calls = {i: 0 for i in range(4)}
    model = stack(4)
    optimizer = boosted(model, layer_sampler=lambda *_: [1, 3], checkpointing=True)
    for i, block in enumerate(model.blocks):

        def count(module: nn.Module, args: Any, y: Any, i: int = i) -> None:
            calls[i] += 1

        block.query.register_forward_hook(count)
    train(model, optimizer, batches(1))
    assert calls == {0: 1, 1: 2, 2: 2, 3: 2}


def test_nothing_is_recomputed_in_evaluation() -> None:
    model = stack(3).eval()
    boosted(model, checkpointing=True)
    x = batches(1)[0][0]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(x)
    assert kept


def test_blocks_that_checkpoint_themselves_do_it_once() -> None:
    model = ZOO["llama"].build().double().train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = boosted(model, checkpointing=True)
    target = next(iter(optimizer.active_factors))
    calls = []
    model.get_submodule(target).register_forward_hook(lambda *_: calls.append(1))
    model(**ZOO["llama"].batch()).loss.backward()
    assert len(calls) == 2


def test_it_is_taken_back() -> None:
    model = stack(3)
    before = anatomy(model)
    boosted(model, checkpointing=True).finalize()
    assert anatomy(model) == before


class Noted:
    """A ``forward`` somebody else has put on a block, as accelerate does."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.before = block.forward
        self.calls = 0
        block.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.before(x)


def test_others_wrap_the_same_forward() -> None:
    """Before and after: both are called, and theirs stay."""
    model, x = stack(2), batches(1)[0][0]
    first = Noted(model.blocks[0])
    optimizer = boosted(model, checkpointing=True)
    second = Noted(model.blocks[1])
    model(x).sum().backward()
    assert (first.calls, second.calls) == (2, 1)
    optimizer.finalize()
    assert model.blocks[0].forward is first and model.blocks[1].forward is second
    model(x).sum().backward()
    assert (first.calls, second.calls) == (3, 2)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_by_themselves(how: str) -> None:
    model = stack(3)
    optimizer = boosted(model, checkpointing=True)
    train(model, optimizer, batches(4))
    if how == "deepcopy":
        twin, other = copy.deepcopy((model, optimizer))
    elif how == "pickle":
        twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        file = io.BytesIO()
        torch.save((model, optimizer), file)
        file.seek(0)
        twin, other = torch.load(file, weights_only=False)
    assert twin.blocks[0].forward.block is twin.blocks[0]
    logs = [train(m, o, batches(4, seed=1)).losses for m, o in ((model, optimizer), (twin, other))]
    assert logs[0] == logs[1]
    assert "forward" not in vars(other.finalize().blocks[0])
    assert "forward" in vars(model.blocks[0])


def test_a_state_dict_has_the_plain_models_keys() -> None:
    model = stack(3)
    keys = list(model.state_dict())
    boosted(model, checkpointing=True)
    assert list(model.state_dict()) == keys


def test_wrong_values_are_refused() -> None:
    for value, error in (("yes", TypeError), (0.0, ValueError), (1.5, ValueError)):
        with pytest.raises(error, match="checkpointing must be True, False, or a share"):
            boosted(stack(2), checkpointing=value)
    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    before = anatomy(plain)
    with pytest.raises(ValueError, match="Sequential has none"):
        boosted(plain, checkpointing=True)
    assert anatomy(plain) == before


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("whole", [True, False])
def test_compiled(fresh_compiler: None, whole: bool) -> None:
    losses = []
    for compiled in (False, True):
        model = stack(2)
        optimizer = boosted(model, kappa=2, layers_per_booster=1, checkpointing=True)
        forward: Any = None
        if compiled and whole:
            forward = torch.compile(model, backend="aot_eager")
        elif compiled:
            for block in model.blocks:
                block.compile(backend="aot_eager")
        losses.append(train(model, optimizer, batches(6), forward=forward).losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_running_statistics_are_refused() -> None:
    blocks = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3))
    model = nn.Sequential(*blocks)
    with pytest.raises(ValueError, match="running statistics"):
        BoostedLowRankOptimizer(AdamW, model, lr=0.1, checkpointing=True)
    assert all(p.requires_grad for p in model.parameters())


def test_a_filled_cache_is_input() -> None:
    """A prefix of keys and values, as prefix tuning gives, is read whatever is computed again."""
    losses = []
    for checkpointing in (False, True, 0.5):
        model, ids = SIZE.model().train(), SIZE.ids()
        optimizer = boosted(model, r=1, checkpointing=checkpointing)
        prefix = DynamicCache(config=model.config)
        generator = torch.Generator().manual_seed(0)
        for layer in range(SIZE.blocks):
            shape = (len(ids), SIZE.heads, 3, SIZE.hidden // SIZE.heads)
            keys, values = torch.randn(2, *shape, generator=generator)
            prefix.update(keys, values, layer)
        loss = model(input_ids=ids, labels=ids, past_key_values=prefix).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1] == losses[2]
    assert losses[0] != pytest.approx(SIZE.model()(input_ids=ids, labels=ids).loss.item(), rel=1e-4)


class Past(nn.Module):
    """A block with an input of a cache's name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, layer_past: Tensor) -> Tensor:
        return x + self.linear(x) * layer_past


class PastStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Past() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, layer_past=torch.full_like(x, 2.0))
        return x


def test_a_tensor_of_a_caches_name_is_input() -> None:
    outputs = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = PastStack()
        boosted(model, checkpointing=checkpointing)
        outputs.append(model(torch.ones(2, 6)).sum().item())
    assert outputs[0] == outputs[1]
