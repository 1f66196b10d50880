"""Every setting is held to what it promises: alike in all processes, and alike in a resumed run."""

import copy
import inspect
import pickle
import re
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

from anatomy import anatomy, same, same_values, values
from processes import run_once
from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer, Decay, LossPlateau, Weighted
from torch_xgb.settings import Contract, Settings, canonical, contract_of, plain
from torch_xgb.weights.fingerprints import EARLIER
from training import through_a_file

Given = dict[str, Any]
Told = tuple[str | None, bool]
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


def three(booster_index: int) -> int:
    return 3


def four(booster_index: int) -> int:
    return 4


def half(booster_index: int) -> float:
    return 0.5


def one(booster_index: int) -> float:
    return 1.0


def plateau(patience: int, **others: Any) -> LossPlateau:
    return LossPlateau(patience=patience, min_steps=2, **others)


def adamw_with(params: Any, note: object = None, **kwargs: Any) -> Optimizer:
    """A base with an argument that nobody can compare."""
    return AdamW(params, **kwargs)


def build(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    """Build with copies of the settings: a policy is one run's, and remembers its losses."""
    settings = {"kappa": 3, "layers_per_booster": 2, "lr": 0.02, **copy.deepcopy(settings)}
    settings.setdefault("lora_alpha", None)
    if settings.keys() & {"head_lr", "modules_to_save_optimizer"}:
        settings.setdefault("modules_to_save", ["head"])
    base = settings.pop("optimizer_class", AdamW)
    return BoostedLowRankOptimizer(base, model, **settings)


# Compared by what they select.
SELECTING = ("target_modules", "exclude_modules", "target_parameters")

# Processes that train one model: a setting, its value in the first process, and in the second.

DIFFERING: dict[str, tuple[str, Any, Any]] = {
    "optimizer_class": ("optimizer_class", AdamW, SGD),
    "r": ("r", 1, 2),
    "r-schedule": ("r", [1, 2], [1, 3]),
    "r-callable": ("r", three, four),
    "kappa": ("kappa", 3, 4),
    "kappa-knots": ("kappa", [3, 6], [3, 7]),
    "kappa-callable": ("kappa", three, four),
    "kappa-or-none": ("kappa", 3, None),
    "kappa-policy": ("kappa", plateau(2), plateau(3)),
    "kappa-policy-last": ("kappa", plateau(2), plateau(2, stop_after=4)),
    "accumulator_rank": ("accumulator_rank", 32, 16),
    "layers_per_booster": ("layers_per_booster", 2, 1),
    "layers_per_booster-share": ("layers_per_booster", [2, 0.7], [2, 0.3]),
    "target_modules": ("target_modules", "all-linear", ["query", "value"]),
    "exclude_modules": ("exclude_modules", None, ["query"]),
    "target_parameters": ("target_parameters", None, ["embed.weight"]),
    "modules_to_save": ("modules_to_save", None, ["head"]),
    "modules_to_save_optimizer": ("modules_to_save_optimizer", SGD, AdamW),
    "head_lr": ("head_lr", 0.1, 0.2),
    "lora_alpha": ("lora_alpha", None, 2.0),
    "lora_dropout": ("lora_dropout", 0.0, 0.25),
    "adapter": ("adapter", "lora", "direft"),
    "bias": ("bias", "none", "targets"),
    "shrinkage": ("shrinkage", 1.0, 0.5),
    "shrinkage-schedule": ("shrinkage", [1.0, 0.5], [1.0, 0.25]),
    "shrinkage-callable": ("shrinkage", one, half),
    "factor_l2": ("factor_l2", 0.0, 0.125),
    "layer_sampler": ("layer_sampler", "uniform", "cyclic"),
    "layer_sampler-weighted": (
        "layer_sampler",
        Weighted((1.5, 2.5, 3.5)),
        Weighted((1.5, 2.5, 4.5)),
    ),
    "init": ("init", "kaiming", "gradient"),
    "carry": ("carry", None, 0.5),
    "carry-share": ("carry", 0.25, 0.5),
    "carry-schedule": ("carry", [0.5, 1.0], [0.5, 0.75]),
    "carry-callable": ("carry", one, half),
    "carry-decay": ("carry", Decay(0.5), Decay(0.25)),
    "merge_precision": ("merge_precision", "auto", "stochastic"),
    "checkpointing": ("checkpointing", False, True),
    "checkpointing-share": ("checkpointing", 0.25, 0.75),
    "rewarmup_steps": ("rewarmup_steps", 0, 3),
    "rank_lr_exponent": ("rank_lr_exponent", 0.0, -0.25),
    "nonfinite": ("nonfinite", "error", "skip"),
    "unused": ("unused", "error", "skip"),
    "seed": ("seed", 0, 7),
    "lr": ("lr", 0.02, 0.03),
    "lr-tensor": ("lr", torch.tensor(0.02), torch.tensor(0.03)),
    "betas": ("betas", (0.9, 0.999), (0.8, 0.999)),
    "betas-list": ("betas", [0.9, 0.999], [0.8, 0.999]),
    "weight_decay": ("weight_decay", 0.0, 0.1),
}

# What one means by both is the same: in two processes, and in a run and the one that resumes it.
EQUAL: dict[str, tuple[str, Any, Any]] = {
    "r-tuple": ("r", [1, 2], (1, 2)),
    "r-numpy": ("r", 2, np.int64(2)),
    "kappa-tuple": ("kappa", [3, 6], (3, 6)),
    "kappa-numpy": ("kappa", 3, np.int64(3)),
    "kappa-numpy-knots": ("kappa", [3, 6], [np.int64(3), np.int64(6)]),
    "kappa-callable": ("kappa", three, three),
    "kappa-policy": ("kappa", plateau(2), plateau(2)),
    "layers_per_booster-numpy": ("layers_per_booster", 2, np.int64(2)),
    "layers_per_booster-tuple": ("layers_per_booster", [2, None], (2, None)),
    "target_modules-tuple": ("target_modules", ["query", "value"], ("query", "value")),
    "modules_to_save-tuple": ("modules_to_save", ["head"], ("head",)),
    "lora_alpha-integer": ("lora_alpha", 2.0, 2),
    "lora_dropout-integer": ("lora_dropout", 0.0, 0),
    "shrinkage-tuple": ("shrinkage", [1.0, 0.5], (1.0, 0.5)),
    "shrinkage-integer": ("shrinkage", 1.0, 1),
    "shrinkage-callable": ("shrinkage", half, half),
    "factor_l2-integer": ("factor_l2", 0.0, 0),
    "factor_l2-numpy": ("factor_l2", 0.25, np.float64(0.25)),
    "layer_sampler-weighted": ("layer_sampler", Weighted((1, 2, 3)), Weighted((1, 2, 3))),
    "layer_sampler-numbers": ("layer_sampler", Weighted((1, 2, 3)), Weighted((1.0, 2.0, 3.0))),
    "carry-integer": ("carry", 1.0, 1),
    "carry-tuple": ("carry", [0.5, 1], (0.5, 1.0)),
    "carry-decay": ("carry", Decay(1), Decay(1.0)),
    "rewarmup_steps-numpy": ("rewarmup_steps", 3, np.int64(3)),
    "rank_lr_exponent-integer": ("rank_lr_exponent", 0.0, 0),
    "seed-numpy": ("seed", 7, np.int64(7)),
    "lr-tensor": ("lr", torch.tensor(0.02), torch.tensor(0.02)),
    "betas": ("betas", [0.9, 0.999], (0.9, 0.999)),
    "weight_decay-integer": ("weight_decay", 0.0, 0),
}

# Each process's own affair: where it keeps things, and what it writes down.
OWN: dict[str, tuple[str, Any, Any]] = {
    "record": ("record", True, None),
    "record-second": ("record", None, True),
    "residual_device": ("residual_device", None, "cpu"),
}


def _told_of(name: str, value: Any, **others: Any) -> Told:
    """What the constructor said, and whether it left the model as it was if it said something."""
    model = stack(3)
    structure, before = anatomy(model), values(model)
    try:
        build(model, **{name: value}, **others).finalize()
    except ValueError as error:
        return str(error), anatomy(model) == structure and same_values(model, before)
    return None, True


def _tell_of_settings() -> dict[str, dict[str, Told]]:
    rank = distributed.get_rank()
    tables = {"differing": DIFFERING, "equal": EQUAL, "own": OWN}
    told = {
        title: {case: _told_of(name, both[rank]) for case, (name, *both) in table.items()}
        for title, table in tables.items()
    }
    # The text of an object may hold its address, which differs between processes.
    told["equal"]["opaque"] = _told_of("note", object(), optimizer_class=adamw_with)
    return told


# The modules trained in full.


def _with_head(differs: str | None) -> Stack:
    """The same model in every process, but for a Parameter of the head."""
    model = stack(3)
    if differs is not None:
        with torch.no_grad():
            model.get_parameter(differs).add_(distributed.get_rank())
    return model


def _shard(model: Stack, whole_head: bool = False) -> None:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    if not whole_head:
        fully_shard(model, mesh=mesh)


def _train_head(how: str, differs: str | None) -> str | None:
    """Build, shard and take a step; what was said at the latest then."""
    model = _with_head(differs)
    if how in ("before", "blocks-before"):
        _shard(model, whole_head=how == "blocks-before")
    try:
        optimizer = build(model, modules_to_save=["head"])
        if how == "blocks-before":
            return None  # nobody averages the gradients of such a head
        if how == "after":
            _shard(model)
        x, y = batches(1)[0]
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.finalize()
    except ValueError as error:
        return str(error)
    return None


# A head that is sharded before the optimizer sees it is nothing to compare: a shard is what its
# process made of it, and differs from the other shards anyway.
HEADS = [
    ("whole", "head.weight"),
    ("whole", "head.bias"),
    ("blocks-before", "head.weight"),
    ("after", "head.weight"),
]
LIKE_HEADS = ["whole", "blocks-before", "before", "after"]


def _tell_of_heads() -> dict[str, dict[Any, str | None]]:
    return {
        "alike": {how: _train_head(how, None) for how in LIKE_HEADS},
        "differing": {case: _train_head(*case) for case in HEADS},
    }


def _tell() -> tuple[dict[str, dict[str, Told]], dict[str, dict[Any, str | None]]]:
    return _tell_of_settings(), _tell_of_heads()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Every case in one pair of processes: to start them takes longer than the cases do."""
    return run_once(tmp_path_factory, _tell, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("case", DIFFERING)
def test_a_setting_that_differs_between_processes_is_told(case: str, told: list[Any]) -> None:
    """On every process, at construction: later one of them would wait, or train another model."""
    name = DIFFERING[case][0]
    name = rf"({name}|targets)" if name in SELECTING else name
    for settings, _ in told:
        message, unharmed = settings["differing"][case]
        assert message is not None, "accepted"
        assert re.search(rf"rank 1\b.*\b{name}\b", message), message
        assert unharmed


@pytest.mark.distributed
@pytest.mark.parametrize("case", [*EQUAL, "opaque"])
def test_equal_settings_of_other_types_are_accepted(case: str, told: list[Any]) -> None:
    assert [settings["equal"][case][0] for settings, _ in told] == [None, None]


@pytest.mark.distributed
@pytest.mark.parametrize("case", OWN)
def test_what_is_each_processs_own_affair_may_differ(case: str, told: list[Any]) -> None:
    assert [settings["own"][case][0] for settings, _ in told] == [None, None]


@pytest.mark.distributed
@pytest.mark.parametrize(("how", "differs"), HEADS)
def test_a_trained_head_that_differs_between_processes_is_told(
    how: str, differs: str, told: list[Any]
) -> None:
    """New heads are what processes without a common seed differ in."""
    for _, heads in told:
        message = heads["differing"][how, differs]
        assert message is not None, "accepted"
        assert re.search(rf"rank 1\b.*\b{re.escape(differs)}\b", message), message
        other = {"head.weight": "head.bias", "head.bias": "head.weight"}[differs]
        assert other not in message


@pytest.mark.distributed
@pytest.mark.parametrize("how", LIKE_HEADS)
def test_like_heads_are_accepted(how: str, told: list[Any]) -> None:
    assert [heads["alike"][how] for _, heads in told] == [None, None]


# A run and the one that resumes it: a setting, its value when saved, here, and how both are shown.

CHANGED: dict[str, tuple[str, Any, Any, str, str]] = {
    "optimizer_class": ("optimizer_class", AdamW, SGD, "AdamW", "SGD"),
    "r": ("r", 1, 2, r"\b1\b", r"\b2\b"),
    "r-schedule": ("r", [1, 2], [1, 3], r"1, 2\b", r"1, 3\b"),
    "kappa": ("kappa", 3, 4, r"\b3\b", r"\b4\b"),
    "kappa-from-callable": ("kappa", three, 3, "", r"\b3\b"),
    "kappa-to-callable": ("kappa", 3, three, r"\b3\b", ""),
    "kappa-policy": ("kappa", plateau(5), plateau(6), r"\b5\b", r"\b6\b"),
    "kappa-policy-last": (
        "kappa",
        plateau(2, stop_after=3),
        plateau(2, stop_after=4),
        r"\b3\b",
        r"\b4\b",
    ),
    "layers_per_booster": ("layers_per_booster", 2, 1, r"\b2\b", r"\b1\b"),
    "target_modules": ("target_modules", "all-linear", ["query"], "", "query"),
    "exclude_modules": ("exclude_modules", None, ["query"], "", ""),
    "target_parameters": ("target_parameters", None, ["embed.weight"], "", "embed"),
    "modules_to_save": ("modules_to_save", [], ["head"], "", "head"),
    "modules_to_save_optimizer": ("modules_to_save_optimizer", SGD, AdamW, "SGD", "AdamW"),
    "lora_alpha": ("lora_alpha", None, 2.0, "None", r"2\.0"),
    "lora_dropout": ("lora_dropout", 0.0, 0.25, r"0\.0", r"0\.25"),
    "adapter": ("adapter", "lora", "direft", "lora", "direft"),
    "bias": ("bias", "none", "targets", "none", "targets"),
    "shrinkage": ("shrinkage", 1.0, 0.5, r"1\.0", r"0\.5"),
    "shrinkage-schedule": ("shrinkage", [1.0, 0.5], [1.0, 0.25], r"1\.0, 0\.5", r"1\.0, 0\.25"),
    "shrinkage-to-callable": ("shrinkage", 1.0, one, r"1\.0", ""),
    "factor_l2": ("factor_l2", 0.0, 0.125, r"0\.0", r"0\.125"),
    "accumulator_rank": ("accumulator_rank", 32, 16, r"\b32\b", r"\b16\b"),
    "layer_sampler": ("layer_sampler", "uniform", "cyclic", "uniform", "cyclic"),
    "layer_sampler-to-weighted": (
        "layer_sampler",
        "uniform",
        Weighted((1.5, 2.5, 3.5)),
        "uniform",
        r"3\.5",
    ),
    "layer_sampler-weighted": (
        "layer_sampler",
        Weighted((1.5, 2.5, 3.5)),
        Weighted((1.5, 2.5, 4.5)),
        r"3\.5",
        r"4\.5",
    ),
    "init": ("init", "kaiming", "gradient", "kaiming", "gradient"),
    "carry": ("carry", None, 0.5, "None", r"0\.5"),
    "merge_precision": ("merge_precision", "auto", "stochastic", "auto", "stochastic"),
    "rewarmup_steps": ("rewarmup_steps", 0, 3, r"\b0\b", r"\b3\b"),
    "rank_lr_exponent": ("rank_lr_exponent", 0.0, -0.25, r"0\.0", r"-0\.25"),
    "seed": ("seed", 0, 7, r"\b0\b", r"\b7\b"),
}

# The base's own settings travel with its groups; the others change nothing that is computed.
RESUMABLE: dict[str, tuple[str, Any, Any]] = {
    "lr": ("lr", 0.02, 0.03),
    "lr-tensor": ("lr", torch.tensor(0.02), torch.tensor(0.03)),
    "betas": ("betas", (0.9, 0.999), (0.8, 0.999)),
    "betas-list": ("betas", [0.9, 0.999], [0.8, 0.999]),
    "weight_decay": ("weight_decay", 0.0, 0.1),
    "head_lr": ("head_lr", 0.02, 0.03),
    "nonfinite": ("nonfinite", "error", "skip"),
    "unused": ("unused", "error", "skip"),
    "checkpointing": ("checkpointing", False, True),
    "record-ended": ("record", True, None),
    "residual_device": ("residual_device", None, "cpu"),
}


def train(model: nn.Module, optimizer: BoostedLowRankOptimizer, count: int) -> list[float]:
    """Train as one does with any kappa, a policy among them."""
    losses = []
    for x, y in batches(count, seed=optimizer.booster_step):
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def begin(steps: int, **settings: Any) -> tuple[Stack, BoostedLowRankOptimizer]:
    model = stack(3)
    optimizer = build(model, **settings)
    train(model, optimizer, steps)
    return model, optimizer


def saved(model: Stack, optimizer: BoostedLowRankOptimizer) -> Checkpoint:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def everything(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> Any:
    """All that a run consists of, the frozen weights among it."""
    return copy.deepcopy((values(model), optimizer.state_dict()))


def refusal(model: Stack, optimizer: BoostedLowRankOptimizer, weights: Any, state: Any) -> str:
    """What load_state_dict says; everything is as before: structure, weights and state."""
    model.load_state_dict(weights)
    structure, before = anatomy(model), everything(model, optimizer)
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(state)
    assert anatomy(model) == structure
    assert same(everything(model, optimizer), before)
    return str(caught.value)


def groups(optimizer_or_state: Any) -> list[dict[str, Any]]:
    """The settings of the base in its groups."""
    found = (
        optimizer_or_state["param_groups"]
        if isinstance(optimizer_or_state, dict)
        else optimizer_or_state.param_groups
    )
    return [{k: v for k, v in group.items() if k != "params"} for group in found]


@pytest.mark.parametrize("case", CHANGED)
def test_a_run_resumed_with_another_setting_is_refused(case: str) -> None:
    """Inside a booster other than the first; the setting is named, with both values."""
    name, before, here, shown_before, shown_here = CHANGED[case]
    weights, state = saved(*begin(4, **{name: before}))
    said = refusal(*begin(1, **{name: here}), weights, state)
    name = rf"({name}|targets)" if name in SELECTING else name
    assert re.search(rf"(?s)\b{name}\b.*{shown_before}.*{shown_here}", said), said


@pytest.mark.parametrize("case", RESUMABLE)
def test_what_may_change_in_a_resumed_run(case: str) -> None:
    """The base's settings are the saved ones afterwards, as with any optimizer of torch's."""
    name, before, here = RESUMABLE[case]
    others = {"merge_precision": "residual"}
    # A ledger that begins with the resumed run holds no booster: the first one is not over.
    weights, state = saved(*begin(2, **{name: before}, **others))
    model, optimizer = begin(0, **{name: here}, **others)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert same(groups(optimizer), groups(state))
    train(model, optimizer, 2)


@pytest.mark.parametrize("case", EQUAL)
def test_equal_settings_of_other_types_resume(case: str) -> None:
    name, before, here = EQUAL[case]
    straight = begin(1, **{name: before})
    weights, state = saved(*straight)
    state["booster"]["settings"] = through_a_file(state["booster"]["settings"])
    model, optimizer = begin(0, **{name: here})
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert train(model, optimizer, 1) == train(*straight, 1)


# The table of all settings.


def contracts() -> dict[str, Any]:
    return {f.name: contract_of(f) for f in fields(Settings)}


def test_every_setting_says_what_must_share_it() -> None:
    assert {c.name for c in Contract} == {"RUN", "RANKS", "HERE"}
    for entry in fields(Settings):
        assert isinstance(entry.metadata["contract"], Contract), entry.name
        assert contract_of(entry) is entry.metadata["contract"]


def test_the_table_holds_what_the_constructor_takes() -> None:
    parameters = inspect.signature(BoostedLowRankOptimizer.__init__).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {f.name for f in fields(Settings)} == keywords | {"optimizer_kwargs"}


def test_the_table_has_the_constructors_defaults() -> None:
    for name, parameter in inspect.signature(BoostedLowRankOptimizer).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert getattr(Settings(), name) == parameter.default, name


def test_a_base_that_does_not_pickle_is_no_part_of_the_settings() -> None:
    model = stack()
    optimizer = BoostedLowRankOptimizer(lambda groups, **kw: AdamW(groups, **kw), model, lr=0.1)
    twin = pickle.loads(pickle.dumps(optimizer))
    assert type(twin.base) is AdamW


def test_the_table_is_frozen_and_takes_keywords() -> None:
    assert Settings.__dataclass_params__.frozen
    assert all(f.kw_only for f in fields(Settings))


def test_a_setting_without_a_contract_is_an_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(Settings):
        forgotten: int = 0
        misspelt: int = field(default=0, metadata={"contract": "run"})

    found = {f.name: f for f in fields(More)}
    for name in ("forgotten", "misspelt"):
        with pytest.raises(TypeError, match=name):
            contract_of(found[name])


class Watching:
    """A policy with public state, as anybody might write one."""

    def __init__(self, patience: int = 2) -> None:
        self.patience = patience
        self.best, self.worst = float("inf"), float("nan")
        self.converged = False

    def observe(self, loss: float) -> None:
        self.best = min(self.best, loss)

    def ends(self, booster_step: int) -> bool:
        return booster_step >= self.patience

    def begin(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


def test_what_a_policy_was_told_is_compared_and_not_its_state() -> None:
    model, optimizer = begin(0, kappa=Watching())
    for x, y in batches(5):
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.observe(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    weights, state = saved(model, optimizer)
    model, optimizer = begin(0, kappa=Watching())
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert optimizer.boosting.course.policy.best < float("inf")
    model, optimizer = begin(0, kappa=Watching(patience=3))
    model.load_state_dict(weights)
    with pytest.raises(ValueError, match="patience"):
        optimizer.load_state_dict(state)


def test_a_samplers_draws_are_asked_for_once() -> None:
    asked: list[int] = []

    def rule(seed: int, t: int, num_layers: int, layers_per_booster: int) -> list[int]:
        asked.append(t)
        return list(range(layers_per_booster))

    begin(0, layer_sampler=rule)
    assert asked == [0]


class Colour(Enum):
    RED = 1
    BLUE = 2


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (partial(pow, 2), partial(pow, 2), True),
        (partial(pow, 2), partial(pow, 3), False),
        (Colour.RED, Colour.BLUE, False),
        ((1, 2.0), [1.0, 2], True),
        (np.array([1, 2]), [1, 2], True),
        (np.float32(0.5), 0.5, True),
        (torch.tensor(0.5), 0.5, True),
        (torch.zeros(1000, 2000), torch.ones(1000, 2000), True),  # too large to look at
        (float("nan"), float("nan"), True),
        (torch.device("cuda", 0), torch.device("cuda", 1), True),  # each process has its own
        ({1: "a"}, {"1": "a"}, False),
        (1 + 2j, 1 + 3j, False),
        (Weighted((1.0, 2.0)), Weighted((2.0, 1.0)), False),
    ],
)
def test_plain_values(one: object, other: object, equal: bool) -> None:
    assert (canonical(plain(one)) == canonical(plain(other))) is equal


def recursive() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        np.poly1d([0.01, 1]),
        np.add,
        torch.zeros(2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        {None, "a"},
        recursive(),
        b"bytes",
        (x for x in ()),
        nn.Linear(2, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_has_a_plain_form(value: object) -> None:
    assert isinstance(canonical(plain(value)), str)


def test_warnings_point_at_the_users_line() -> None:
    with pytest.warns(UserWarning, match="target_modules") as caught:
        BoostedLowRankOptimizer(SGD, stack(), target_modules=["query", "nothing"], lr=0.1)
    assert [Path(warning.filename).name for warning in caught] == ["test_settings.py"]


def test_every_contract_is_tried() -> None:
    """A new setting is not done before the tables above have it."""
    tried = {name for name, *_ in DIFFERING.values()} | {"optimizer_kwargs"}
    refused = {name for name, *_ in CHANGED.values()}
    changeable = {name for name, *_ in RESUMABLE.values()} | {"optimizer_kwargs"}
    for name, contract in contracts().items():
        assert contract.name == "HERE" or name in tried, name
        assert name in (refused if contract.name == "RUN" else refused | changeable), name
    for name, *_ in OWN.values():
        assert contracts()[name].name == "HERE"


# Checkpoints of version 1, which held fewer settings, and of a callable only that it was one.


def version_1(
    model: Stack, optimizer: BoostedLowRankOptimizer, state: dict[str, Any], given: Given
) -> dict[str, Any]:
    """A state as that version wrote it, of an optimizer that was given these settings."""
    defaults = {
        "adapter": "lora",
        "bias": "none",
        "r": 1,
        "kappa": 3,
        "layers_per_booster": 2,
        "layer_sampler": "uniform",
        "lora_alpha": None,
        "init": "kaiming",
        "carry": None,
        "merge_precision": "auto",
        "modules_to_save": [],
        "seed": 0,
    }
    settings = {name: given.get(name, default) for name, default in defaults.items()}
    for name, value in settings.items():
        if name == "kappa" and not isinstance(value, (int, list, type(None))):
            settings[name] = type(value).__name__  # of a function "function"
        elif callable(value):
            settings[name] = "callable"
    settings["optimizer_class"] = type(optimizer.base).__name__
    settings["targets"] = {
        name: list(model.get_submodule(name).weight.shape) for name in optimizer.targets
    }
    later = ("seal", "rest", "heads", "kappa")
    entry = {key: value for key, value in state["booster"].items() if key not in later}
    return state | {"booster": entry | {"version": 1, "settings": settings}}


def saved_by_version_1(given: Given) -> tuple[Stack, BoostedLowRankOptimizer, Any, Any]:
    model, optimizer = begin(4, **given)
    with patch("torch_xgb.saving.pending.NUMBERING", EARLIER):
        weights, state = saved(model, optimizer)
    return model, optimizer, weights, version_1(model, optimizer, state, given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"r": [1, 2], "lora_alpha": 2.0, "seed": 7},
        {"r": three, "layers_per_booster": None},
        {"kappa": three},
        {"kappa": plateau(2)},
        {"kappa": [2, 6]},
        {"kappa": None, "modules_to_save": ["head"]},
        {"layer_sampler": Weighted((1.5, 2.5, 3.5))},
        {"carry": 0.5, "bias": "targets"},
        {"merge_precision": "residual", "init": "gradient", "adapter": "direft"},
        {"shrinkage": 0.5, "factor_l2": 0.125, "rewarmup_steps": 3, "rank_lr_exponent": -0.25},
    ],
    ids=lambda given: "-".join(given) or "defaults",
)
def test_a_checkpoint_of_version_1_goes_on(given: Given) -> None:
    """What is saved next is of the present version."""
    straight, its_optimizer, weights, state = saved_by_version_1(given)
    model, optimizer = begin(0, **given)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert train(model, optimizer, 3) == train(straight, its_optimizer, 3)
    assert same(everything(model, optimizer), everything(straight, its_optimizer))


@pytest.mark.parametrize(
    ("given", "here"),
    [
        ({"factor_l2": 0.0}, {"factor_l2": 0.125}),
        ({"rewarmup_steps": 0}, {"rewarmup_steps": 3}),
        ({"kappa": plateau(2)}, {"kappa": plateau(3)}),
        ({"kappa": three}, {"kappa": four}),
        (
            {"layer_sampler": Weighted((1.5, 2.5, 3.5))},
            {"layer_sampler": Weighted((1.5, 2.5, 4.5))},
        ),
    ],
    ids=lambda given: "-".join(given),
)
def test_version_1_is_not_held_to_what_it_did_not_say(given: Given, here: Given) -> None:
    *_, weights, state = saved_by_version_1(given)
    model, optimizer = begin(0, **here)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("given", "here"),
    [
        ({}, {"optimizer_class": SGD}),
        ({}, {"adapter": "direft"}),
        ({}, {"bias": "targets"}),
        ({}, {"r": 2}),
        ({}, {"r": three}),
        ({}, {"kappa": 4}),
        ({}, {"kappa": three}),
        ({"kappa": three}, {"kappa": 3}),
        ({"kappa": plateau(2)}, {"kappa": three}),
        ({}, {"layers_per_booster": 1}),
        ({}, {"layer_sampler": "cyclic"}),
        ({"layer_sampler": Weighted((1.5, 2.5, 3.5))}, {"layer_sampler": "uniform"}),
        ({}, {"lora_alpha": 2.0}),
        ({}, {"init": "gradient"}),
        ({}, {"carry": 0.5}),
        ({}, {"merge_precision": "stochastic"}),
        ({}, {"modules_to_save": ["head"]}),
        ({}, {"seed": 7}),
        ({}, {"target_modules": ["query"]}),
    ],
    ids=lambda given: "-".join(given) or "defaults",
)
def test_a_checkpoint_of_version_1_with_another_setting_is_refused(
    given: Given, here: Given
) -> None:
    *_, weights, state = saved_by_version_1(given)
    (name,) = here
    said = refusal(*begin(1, **here), weights, state)
    assert re.search("targets" if name == "target_modules" else rf"\b{name}\b", said), said


@pytest.mark.parametrize("version", [0, 99, None])
def test_a_checkpoint_of_no_known_version_is_refused(version: int | None) -> None:
    weights, state = saved(*begin(1))
    state["booster"]["version"] = version
    said = refusal(*begin(1), weights, state)
    assert re.search(rf"version\W+{version}\b", said), said
