"""Runs with a ledger and without training: random boosters, merged and recorded as in a run."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from torch_xgb.boosters.forms import Form, Update, form
from torch_xgb.boosters.pair import Pair
from torch_xgb.boosters.report import MergeReport
from torch_xgb.formulas.lowrank import frobenius_norms
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.header import ChainHeader, WeightFacts
from torch_xgb.ledger.opening import writer
from torch_xgb.ledger.records import BoosterRecord
from torch_xgb.ledger.resume import Bookmark
from torch_xgb.ledger.writer import Writer
from torch_xgb.settings import Settings
from torch_xgb.targets.layers import Layer, Target
from torch_xgb.targets.selection import select
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.weight import Weight

Weights = dict[str, Tensor]
PLACES = pytest.mark.parametrize("place", ["memory", "folder"])  # that a ledger is kept in


def where(place: str, tmp_path: Path) -> bool | Path:
    return True if place == "memory" else tmp_path / "run"


def bert(dtype: torch.dtype = torch.float32, labels: int = 3, seed: int = 0) -> nn.Module:
    """A classifier of two blocks, hidden size 16, with a head to be trained in full."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=40,
        num_labels=labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).to(dtype).eval()


def gpt2(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A language model of two blocks whose linear maps are Conv1D."""
    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=40,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).to(dtype).eval()


def weights_of(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_record(a: BoosterRecord, b: BoosterRecord) -> bool:
    plain = ("booster_index", "layers", "steps", "rank", "update_norm")
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and a.updates.keys() == b.updates.keys()
        and all(
            torch.equal(a.updates[n][0], b.updates[n][0])
            and torch.equal(a.updates[n][1], b.updates[n][1])
            and a.updates[n][2] == b.updates[n][2]
            for n in a.updates
        )
        and same(dict(a.saved), dict(b.saved))
    )


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(12).view(2, 6)).logits


@dataclass
class Run:
    """A model with a chain, to which ``boost`` adds random boosters as an optimizer would.

    ``after[t]`` are the model's weights after booster t, and ``after[-1]`` the original ones.
    """

    model: nn.Module
    record: bool | Path = True
    precision: str = "auto"
    adapter: str = "lora"
    bias: str = "none"
    ranks: Sequence[int] = (1,)
    size: float = 0.05
    seed: int = 0
    after: dict[int, Weights] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = Settings(
            adapter=self.adapter,
            bias=self.bias,
            merge_precision=self.precision,
            seed=self.seed,
            record=self.record,
        )
        self.selection = select(self.model, settings)
        self.layers: list[Layer] = self.selection.layers
        self.form: Form = form(self.adapter, self.bias)
        self.saved = self.selection.named
        found = writer(self.model, settings, self.selection, self.form)
        assert found is not None
        self.writer: Writer = found
        self.merger = Merger(self.precision, self.seed)
        self.after[-1] = weights_of(self.model)

    @property
    def chain(self) -> Chain:
        return self.writer.chain

    @property
    def bookmark(self) -> Bookmark:
        """What a checkpoint taken now would say of the ledger."""
        return Bookmark(len(self.chain), 0, **self.writer.bookmark)

    @torch.no_grad()
    def boost(self, count: int = 1, observe: Callable[[int], None] = lambda t: None) -> None:
        """Merge and record more boosters, each of one layer."""
        for t in range(len(self.chain), len(self.chain) + count):
            generator = torch.Generator().manual_seed(100 * self.seed + t)
            self.writer.check_next(t)
            for parameter in self.saved.values():
                parameter += 0.01 * _normal(parameter.shape, generator).to(parameter.dtype)
            layer, r = self.layers[t % len(self.layers)], self.ranks[t % len(self.ranks)]
            updates = {target.name: self._updates(target, r, generator) for target in layer.targets}
            norms = frobenius_norms([pairs[0][1] for pairs in updates.values()]).tolist()
            report = MergeReport(t, (layer.name,), 8, r, dict(zip(updates, norms, strict=True)), {})
            merged = [pair for pairs in updates.values() for pair in pairs]
            self.writer.append(BoosterRecord.of(report, merged, self.saved))
            for weight, (left, right, scale) in merged:
                self.merger.merge(weight, left, right, scale, t)
            self.after[t] = weights_of(self.model)
            observe(t)

    def _updates(
        self, target: Target, r: int, generator: torch.Generator
    ) -> list[tuple[Weight, Update]]:
        # As in a run: Parameters of the highest rank, of which a booster uses a corner.
        most = max(self.ranks)
        shapes = [shape for shape in self.form.shapes(target, most) if shape is not None]
        pair = Pair(*(self.size * _normal(shape, generator) for shape in shapes))
        narrow = self.form.narrow(pair, r)
        return [
            (weight, self.form.update(weight, narrow, 0.7)) for weight in self.form.weights(target)
        ]


def total_update(run: Run, name: str) -> Tensor:
    """The sum of a weight's updates, as a dense matrix (out, in) in float64."""
    rows, columns = run.chain.header.weights[name].shape
    total = torch.zeros(rows, columns, dtype=torch.float64)
    for record in run.chain:
        if name in record.updates:
            left, right, scale = record.updates[name]
            total += scale * (left.double() @ right.double())
    return total


def synthetic(t: int, size: int = 64) -> BoosterRecord:
    """A booster whose every value follows from t."""
    weight, target = "layer.0.weight", "layer.0"
    left = torch.arange(size, dtype=torch.float32).unsqueeze(1) + t
    right = torch.full((1, size), 1.0 + t)
    saved = {"head.weight": torch.full((4, size), float(t))}
    return BoosterRecord(
        t, ("layer.0",), 8, 1, {target: float(t)}, {weight: (left, right, 1.0)}, saved
    )


def synthetic_header(size: int = 64) -> tuple[ChainHeader, Callable[[], Weights]]:
    """The header and the original weights of a chain of synthetic boosters."""
    facts = WeightFacts((size, size), "float32", False, ("layer.0",))
    header = ChainHeader(
        {"adapter": "lora", "merge_precision": "nearest", "seed": 0},
        {"layer.0.weight": facts},
        {"layer.0": "layer.0"},
        {"head.weight": (4, size)},
        ("head",),
    )
    return header, lambda: {
        "layer.0.weight": torch.ones(size, size),
        "head.weight": torch.zeros(4, size),
    }


def adapted(base: nn.Module, folder: Path) -> PeftModel:
    """What peft loads, with every warning of its own an error: a missing key is one."""
    with warnings.catch_warnings():
        # peft 0.21 asks for this under a name that transformers 5 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(base, folder).eval()


def config_of(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "adapter_config.json").read_text())
    return config


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator)
