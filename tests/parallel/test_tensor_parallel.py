"""Weights cut by tensor parallelism, alone and under FSDP2, and FSDP2's copies of shards.

One start of four processes does everything: it takes longer than all that they do.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from processes import run_once
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.product import Product
from torch_xgb.weights.weight import Weight

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {"r": 1, "kappa": 2, "layers_per_booster": 1, "lr": 0.02, "seed": 3}
WORDS, WIDTH, LENGTH = 12, 8, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 12)
        self.down = nn.Linear(12, WIDTH)
        self.mix = nn.Linear(WIDTH, 6)  # shared out unevenly by four, and gathered
        self.back = nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return x + self.back(self.mix(x))


class Model(nn.Module):
    """Tokens in, logits out, with a norm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def made(dtype: torch.dtype = torch.float64) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().to(dtype)


def data(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(WORDS, (steps, 4, LENGTH), generator=generator))


BLOCK = {"up": ColwiseParallel(), "down": RowwiseParallel()}
ROUND = {
    "mix": ColwiseParallel(output_layouts=Replicate()),
    "back": RowwiseParallel(input_layouts=Replicate()),
}


def cut(model: Model, mesh: DeviceMesh, sequence: bool = False) -> Model:
    """Cut blocks, the embedding and the head; norms in between may have a part of each sequence."""
    if not sequence:
        for block in model.blocks:
            parallelize_module(block, mesh, BLOCK | ROUND)
        return model
    inside, outside = {"input_layouts": Shard(1)}, {"output_layouts": Shard(1)}
    for block in model.blocks:
        parallelize_module(
            block,
            mesh,
            {
                "norm": SequenceParallel(),
                "up": ColwiseParallel(**inside),
                "down": RowwiseParallel(**outside),
                "mix": ColwiseParallel(**inside),
                "back": RowwiseParallel(**outside),
            },
        )
    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate(), **outside),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(output_layouts=Replicate(), **inside),
    }
    return parallelize_module(model, mesh, plan)


def laid_out(model: Model, how: str) -> tuple[int, int]:
    """Share a model out; return which copy of it this process has a part of, of how many."""
    if how == "whole":
        return 0, 1
    if how == "hybrid":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
        for block in (*model.blocks, model):
            fully_shard(block, mesh=mesh)
        return distributed.get_rank(), 4
    if how == "cut":
        cut(model, init_device_mesh("cpu", (4,), mesh_dim_names=("four",)))
        return 0, 1
    if how == "cut hybrid":
        mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("copies", "parts", "rows"))
        cut(model, mesh["rows"])
        for block in (*model.blocks, model):
            fully_shard(block, mesh=mesh["copies", "parts"])
        return mesh["copies"].get_local_rank(), 2
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "rows"))
    cut(model, mesh["rows"], sequence="sequence" in how)
    if "alone" in how:  # nobody shards over the other dimension, and nobody needs to
        return mesh["data"].get_local_rank(), 2
    for block in (*model.blocks, model):
        fully_shard(block, mesh=mesh["data"])
    return mesh["data"].get_local_rank(), 2


def full(tensor: Tensor) -> Tensor:
    whole = tensor.detach()
    return (whole.full_tensor() if isinstance(whole, DTensor) else whole).clone()


def train(model: nn.Module, optimizer: Any, share: tuple[int, int], batches: list[Tensor]) -> Any:
    losses, norms = [], []
    for batch in batches:
        tokens = batch[share[0] :: share[1]]
        loss = cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, 1).flatten())
        loss.backward()
        norms.append(float(full(nn.utils.clip_grad_norm_(model.parameters(), 0.2))))
        optimizer.step()
        optimizer.zero_grad()
        distributed.all_reduce(loss := loss.detach().clone())
        losses.append(float(loss) / distributed.get_world_size())
    return losses, norms


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "uneven": ("cut", {"bias": "targets"}),
    "copies": ("cut alone", {"carry": 0.9, "r": 2, "shrinkage": 0.7, "checkpointing": True}),
    "heads": (
        "cut sequence",
        {"modules_to_save": ["norm", "head"], "init": "gradient", "bias": "targets"},
    ),
    "transformers": ("transformers", {"r": 2}),
    "hybrid": ("hybrid", {"modules_to_save": ["head"]}),
}
# A base that does not divide by what it has seen, which would make much of a gradient's rounding.
SMOOTH = {"optimizer_class": SGD, "lr": 1.0, "momentum": 0.9, "lora_alpha": None}
SINGLE: dict[str, tuple[str, dict[str, Any]]] = {
    "single, over four": ("cut", SMOOTH),
    "single, under FSDP2": ("cut sharded", SMOOTH | {"r": 2, "carry": 0.9}),
    "single, under FSDP2 in copies": ("cut hybrid", SMOOTH),
    "single, transformers": ("transformers", SMOOTH | {"r": 2}),
}


class Llama(nn.Module):
    """transformers' own plan, as ``from_pretrained(…, distributed_config=…)`` applies it."""

    def __init__(self, is_cut: bool, dtype: torch.dtype) -> None:
        super().__init__()
        sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": WORDS}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
        config = LlamaConfig(**sizes, **heads, tie_word_embeddings=False)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.llama = LlamaForCausalLM(config).to(dtype)
        if is_cut:
            from transformers.distributed.tensor_parallel import apply_tensor_parallelism

            plan, named = self.llama.tp_plan, dict(self.llama.named_modules())
            generic = {name: re.sub(r"\.\d+\.", ".*.", name) for name in named}
            each = {name: plan[key] for name, key in generic.items() if key in plan}
            each |= {f"{name}.weight": style for name, style in each.items()}
            apply_tensor_parallelism(self.llama, init_device_mesh("cpu", (4,)), each)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.llama(tokens).logits


def trained(how: str, settings: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    is_whole = distributed.get_world_size() == 1
    model = Llama(not is_whole, dtype) if how == "transformers" else made(dtype)
    share = (0, 1) if how == "transformers" else laid_out(model, "whole" if is_whole else how)
    start = {name: full(p) for name, p in model.named_parameters()}
    given = {"optimizer_class": AdamW} | SETTINGS | settings
    optimizer = BoostedLowRankOptimizer(model=model, **given)
    losses, norms = train(model, optimizer, share, data(5 if dtype == torch.float32 else 3))
    middle = {name: full(value) for name, value in model.state_dict().items()}
    with CommDebugMode() as sent:
        optimizer.merge()
    final = {name: full(p) for name, p in optimizer.finalize().named_parameters()}
    moved = max(float((final[name] - W).abs().max()) for name, W in start.items())
    found = {"losses": losses, "norms": norms, "middle": middle, "final": final}
    return found | {"moved": moved, "sent": sent.get_total_counts()}


def all_cases() -> dict[str, Any]:
    each = [(CASES, torch.float64), (SINGLE, torch.float32)]
    return {name: trained(*case, dtype) for cases, dtype in each for name, case in cases.items()}


def everything(folder: str) -> dict[str, Any]:
    found = {"trained": all_cases(), "resumed": resumed(folder), "kept": kept(folder)}
    return {**found, "merged": merged(), "said": refused(), "folder": folder}


def alone_too(folder: str) -> dict[str, Any]:
    return {"trained": all_cases(), "kept": taken_up(folder)}


def resumed(folder: str) -> Any:
    """Straight on, and from a checkpoint of the middle of a booster."""
    batches, settings = data(3), SETTINGS | {"kappa": 3}
    path, own = Path(folder, "model"), Path(folder, f"{distributed.get_rank()}.pt")
    model = made(torch.bfloat16)
    share = laid_out(model, "cut sharded")
    optimizer = BoostedLowRankOptimizer(AdamW, model, **settings)
    train(model, optimizer, share, batches[:2])
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=path)
    torch.save(optimizer.state_dict(), own)
    straight = train(model, optimizer, share, batches[2:])
    optimizer.finalize()
    for parameter in model.parameters():
        parameter.data.zero_()
    optimizer = BoostedLowRankOptimizer(AdamW, model, **settings)
    weights = model.state_dict()
    checkpoint.load({"model": weights}, checkpoint_id=path)
    model.load_state_dict(weights)
    optimizer.load_state_dict(torch.load(own, weights_only=False))
    return straight, train(model, optimizer, share, batches[2:])


class Both:
    """What a script may hand to torch.distributed.checkpoint: a class of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.model = made(dtype)
        if distributed.get_world_size() > 1:
            cut(self.model, init_device_mesh("cpu", (distributed.get_world_size(),)))
        settings = {"kappa": 3, "carry": 0.9, "modules_to_save": ["head"], "r": 2}
        self.optimizer = BoostedLowRankOptimizer(AdamW, self.model, **SETTINGS | settings)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def on(self, batches: list[Tensor]) -> Any:
        trained = train(self.model, self.optimizer, (0, 1), batches)
        weights = {name: full(p) for name, p in self.optimizer.finalize().named_parameters()}
        return trained, weights


def kept(folder: str) -> Any:
    """Save by torch.distributed.checkpoint inside the second booster, and go on; and resume."""
    found, batches = [], data(6)
    for dtype in (torch.float64, torch.bfloat16):
        run = Both(dtype)
        train(run.model, run.optimizer, (0, 1), batches[:4])
        path = Path(folder, str(dtype))
        checkpoint.save({"run": run}, checkpoint_id=path)
        given = {"model": run.model, "optimizer": run.optimizer}
        checkpoint.save(given, checkpoint_id=path / "given")
        found.append(run.on(batches[4:]))
        again = Both(dtype)
        given = {"model": again.model, "optimizer": again.optimizer}
        checkpoint.load(given, checkpoint_id=path / "given")
        found.append(again.on(batches[4:]))
    return found


def taken_up(folder: str) -> Any:
    """Resume in other processes than have saved."""
    run = Both(torch.float64)
    checkpoint.load({"run": run}, checkpoint_id=Path(folder, "torch.float64"))
    return run.on(data(6)[4:])


def merged() -> list[bool]:
    """Merge into parts of weights, and into whole ones: bit by bit the same."""
    mesh = init_device_mesh("cpu", (4,))
    generator, alike = torch.Generator().manual_seed(0), []
    for dim in (0, 1):
        for precision in ("nearest", "stochastic", "residual"):
            W = torch.randn(10, 6, generator=generator).bfloat16()
            left, right = (torch.randn(shape, generator=generator) for shape in ((10, 2), (2, 6)))
            results = []
            for parameter in (W.clone(), distribute_tensor(W.clone(), mesh, [Shard(dim)])):
                module = nn.Module()
                module.weight = nn.Parameter(parameter, requires_grad=False)
                weight, merger = Weight("W", (module,), "weight"), Merger(precision, 5)
                for t in range(2):
                    merger.addition(weight, Product(left, right, 0.01), t).go_on()
                results.append(full(module.weight))
            alike.append(torch.equal(*results) and not torch.equal(results[0], W))
    return alike


def said(error: type[Exception], model: nn.Module, **settings: Any) -> str:
    names, required = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(error) as raised:
        BoostedLowRankOptimizer(AdamW, model, **SETTINGS | settings)
    assert list(model.state_dict()) == names
    assert [p.requires_grad for p in model.parameters()] == required
    return str(raised.value)


def refused() -> dict[str, str]:
    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
    model, bare = (
        cut(made(), mesh),
        {"target_parameters": ["up.weight"], "target_modules": ["back"]},
    )
    found = {
        "direft": said(ValueError, model, adapter="direft"),
        "lora_dropout": said(ValueError, model, lora_dropout=0.1),
        "target_parameters": said(ValueError, model, **bare),
        "record": said(ValueError, model, record=True),
    }
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "rows"))
    model = made()
    model.blocks[0].up.weight = nn.Parameter(
        distribute_tensor(model.blocks[0].up.weight, square, [Replicate(), Shard(0)])
    )
    found["mesh"] = said(ValueError, model)
    model = made()
    BoostedLowRankOptimizer(AdamW, model, **SETTINGS)
    parallelize_module(model.blocks[1], mesh, BLOCK)
    with pytest.raises(RuntimeError) as raised:
        model(data(1)[0])
    found["after"] = str(raised.value)
    return found


SAID = {
    "direft": "adapter='lora'",
    "lora_dropout": "lora_dropout=0.0",
    "target_parameters": "target_parameters",
    "record": "record=None",
    "mesh": "one dimension",
    "after": "parallelize_module first",
}


@pytest.fixture(scope="module")
def four(tmp_path_factory: Any) -> list[dict[str, Any]]:
    return run_once(tmp_path_factory, everything, 4, str(tmp_path_factory.mktemp("cut")))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any, four: Any) -> dict[str, Any]:
    (found,) = run_once(tmp_path_factory, alone_too, 1, four[0]["folder"])
    return found


@pytest.mark.parametrize("name", [*CASES, *SINGLE])
def test_parts_do_what_whole_weights_do(name: str, four: Any, alone: Any) -> None:
    wanted, within = alone["trained"][name], 1e-9 if name in CASES else 1e-5
    assert wanted["moved"] > 1000 * within
    for found in (process["trained"][name] for process in four):
        assert found["sent"] == 0
        assert found["losses"] == pytest.approx(wanted["losses"], abs=within)
        assert found["norms"] == pytest.approx(wanted["norms"], abs=within)
        for part in ("middle", "final"):
            assert found[part].keys() == wanted[part].keys()
            for key, weight in wanted[part].items():
                torch.testing.assert_close(found[part][key], weight, atol=within, rtol=0)


def test_resume_inside_a_booster_is_bitwise(four: Any) -> None:
    for straight, again in (process["resumed"] for process in four):
        assert straight == again


def test_a_distributed_checkpoint_is_resumed_bitwise_and_by_fewer_processes(
    four: Any, alone: Any
) -> None:
    for exact, again, low, low_again in (process["kept"] for process in four):
        for (trained, weights), (others, found) in ((exact, again), (low, low_again)):
            assert trained == others
            assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    trained, weights = four[0]["kept"][0]
    others, found = alone["kept"]
    for one, other in zip(trained, others, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, atol=1e-9, rtol=0)


def test_parts_are_rounded_as_wholes_are(four: Any) -> None:
    assert all(process["merged"] == [True] * 6 for process in four)


@pytest.mark.parametrize("what", SAID)
def test_what_is_not_served_is_said(what: str, four: Any) -> None:
    assert all(SAID[what] in process["said"][what] for process in four)
