"""Which weights are adapted: PEFT's grammar, and what is never taken by accident."""

from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from anatomy import anatomy, same_values, values
from recording import bert, gpt2
from tiny import CLASSES, WIDTH, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train

PARTS = ["query", "key", "value", "out", "up", "down"]


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    settings.setdefault("lora_alpha", None)
    return BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1, **settings)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_all_linear_is_what_the_blocks_hold(kind: str) -> None:
    optimizer = boosted(stack(depth=2, kind=kind))
    assert optimizer.targets == {f"blocks.{i}.{n}": f"blocks.{i}" for i in range(2) for n in PARTS}


@pytest.mark.parametrize(
    ("target_modules", "exclude_modules", "expected"),
    [
        (["query"], None, {"blocks.0.query", "blocks.1.query"}),
        (["blocks.1.query"], None, {"blocks.1.query"}),
        (["1.query", "up"], None, {"blocks.1.query", "blocks.0.up", "blocks.1.up"}),
        (("query",), None, {"blocks.0.query", "blocks.1.query"}),
        (["query", "head"], None, {"blocks.0.query", "blocks.1.query", "head"}),
        (
            r"blocks\.\d+\.(up|down)",
            None,
            {f"blocks.{i}.{n}" for i in (0, 1) for n in ("up", "down")},
        ),
        (r".*\.0\..*", None, {f"blocks.0.{n}" for n in PARTS}),
        (["query", "key"], ["key"], {"blocks.0.query", "blocks.1.query"}),
        (["query", "key"], r".*1\..*", {"blocks.0.query", "blocks.0.key"}),
        ("all-linear", ["up", "down", "0.out"], None),
        ("all-linear", r".*(query|key)", None),
    ],
)
def test_grammar(target_modules: Any, exclude_modules: Any, expected: set[str] | None) -> None:
    """The same modules that PEFT takes, but that "all-linear" stays inside the blocks."""
    model = stack(depth=2)
    config = LoraConfig(
        target_modules=_plain(target_modules), exclude_modules=_plain(exclude_modules)
    )
    theirs = set(get_peft_model(stack(depth=2), config).base_model.targeted_module_names)
    ours = set(
        boosted(model, target_modules=target_modules, exclude_modules=exclude_modules).targets
    )
    assert ours == (theirs - {"embed", "head"} if target_modules == "all-linear" else theirs)
    if expected is not None:
        assert ours == expected


def _plain(names: Any) -> Any:
    return list(names) if isinstance(names, tuple) else names


def test_a_regular_expression_is_matched_whole() -> None:
    with pytest.raises(ValueError, match="query"):
        boosted(stack(), target_modules="query")
    with pytest.raises(ValueError, match="query"):
        boosted(stack(), target_modules=r"blocks\.0")


def test_a_suffix_ends_at_a_dot() -> None:
    """ "layers.1" must not take "layers.10", nor "key" a module called "turnkey"."""
    model = nn.ModuleDict({"turnkey": nn.Linear(2, 2), "key": nn.Linear(2, 2)})
    assert set(boosted(model, target_modules=["key"]).targets) == {"key"}


def test_outside_modules_are_layers_of_their_own() -> None:
    model = stack(depth=2)
    optimizer = boosted(model, target_modules=["embed", "head", "query"], layers_per_booster=None)
    assert optimizer.targets == {
        "embed": "embed",
        "blocks.0.query": "blocks.0",
        "blocks.1.query": "blocks.1",
        "head": "head",
    }
    assert set(optimizer.active_layers) == {"embed", "blocks.0", "blocks.1", "head"}
    train(model, optimizer, batches(3))


def test_a_block_without_targets_is_no_layer() -> None:
    """It is not drawn, and a share of the layers is a share of the others."""
    optimizer = boosted(
        stack(depth=3), exclude_modules=r"blocks\.0\..*", layers_per_booster=0.5, kappa=None
    )
    drawn = set()
    for _ in range(20):
        assert len(optimizer.active_layers) == 1
        drawn |= set(optimizer.active_layers)
        optimizer.merge()
    assert drawn == {"blocks.1", "blocks.2"}


def test_two_optimizers_on_two_parts_of_a_model() -> None:
    model = stack(depth=4)
    before = anatomy(model)
    first = boosted(model.blocks[:2], kappa=2)
    second = boosted(model.blocks[2:], kappa=3)
    assert list(first.targets.values())[0] == "0"
    for x, y in batches(6):
        cross_entropy(model(x), y).backward()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
    assert (first.booster_index, second.booster_index) == (3, 2)
    first.finalize()
    second.finalize()
    assert [row[:3] for row in anatomy(model)] == [row[:3] for row in before]


def test_saved_modules_are_never_targets() -> None:
    optimizer = boosted(stack(), target_modules=r"head|.*\.query", modules_to_save=["head"])
    assert "head" not in optimizer.targets
    assert len(optimizer.targets) == 3


@pytest.mark.parametrize("target_modules", [["query"], ["c_attn", "c_proj"], "all-linear"])
def test_transformers(target_modules: Any) -> None:
    model = gpt2() if "c_attn" in target_modules else bert()
    config = LoraConfig(target_modules=target_modules, fan_in_fan_out="c_attn" in target_modules)
    theirs = set(get_peft_model(model, config).base_model.targeted_module_names)
    ours = set(boosted(type(model)(model.config), target_modules=target_modules).targets)
    outside = {"bert.pooler.dense", "classifier"}
    assert ours == theirs - outside
    assert ours


def test_no_target_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"q_proj.*(?s:.*)query") as error:
        boosted(stack(), target_modules=["q_proj"])
    for name in [*PARTS, "embed", "head"]:
        assert name in str(error.value)


def test_a_model_without_linear_maps() -> None:
    with pytest.raises(ValueError, match=r"no .*Linear"):
        boosted(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))


def test_excluding_everything() -> None:
    with pytest.raises(ValueError, match="exclude_modules"):
        boosted(stack(), exclude_modules=PARTS)


def test_an_entry_that_matches_nothing_is_not_silent() -> None:
    """PEFT passes over it; a typo then trains less than was asked for."""
    with pytest.warns(UserWarning, match="q_proj"):
        optimizer = boosted(stack(), target_modules=["query", "q_proj"])
    assert len(optimizer.targets) == 3


class Encoder(nn.Module):
    """torch's own encoder; its attention reads out_proj's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))


def test_bypassed_projection_is_not_chosen() -> None:
    model = Encoder().double()
    optimizer = boosted(model, kappa=2, layers_per_booster=1)
    assert optimizer.targets == {
        f"encoder.layers.{i}.{n}": f"encoder.layers.{i}"
        for i in range(2)
        for n in ("linear1", "linear2")
    }
    losses = []
    x, y = torch.randn(8, 4, WIDTH, dtype=torch.float64), torch.randint(CLASSES, (8,))
    for _ in range(8):
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_bypassed_projection_by_name_is_an_error_with_its_name() -> None:
    model = Encoder().double()
    x = torch.randn(8, 4, WIDTH, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"encoder\.layers\.\d\.self_attn\.out_proj"):
        optimizer = boosted(model, target_modules=["out_proj", "linear1"])
        model(x).sum().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
def test_fast_path_of_torchs_encoder(padded: bool) -> None:
    """In evaluation torch fuses the layer's maps into one kernel, which would pass the pairs by."""
    model = Encoder()
    optimizer = boosted(model, kappa=None, layers_per_booster=1, layer_sampler=lambda *_: [1])
    x, y = torch.randn(8, 4, WIDTH), torch.randint(CLASSES, (8,))
    mask = torch.zeros(8, 4, dtype=torch.bool)
    mask[1:, 3:] = padded
    for _ in range(5):
        cross_entropy(model(x, mask), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model(x, mask).detach()
    model.eval()
    with torch.no_grad():
        evaluated = model(x, mask)
    torch.testing.assert_close(evaluated, trained, rtol=1e-5, atol=1e-6)
    plain = Encoder()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x, mask), trained, rtol=1e-5, atol=1e-6)


def test_a_parametrized_weight_is_no_target() -> None:
    """Its weight is computed anew in every forward pass: there is nothing to merge into."""
    model = nn.Sequential(
        nn.Linear(3, 4),
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 2),
    )
    optimizer = boosted(model)
    assert set(optimizer.targets) == {"0", "2"}
    optimizer.finalize()
    with pytest.raises(ValueError, match="1"):
        boosted(model, target_modules=["1"])


def test_a_subclass_with_a_forward_of_its_own_is_no_target() -> None:
    """Found by type, never by luck: what it does with the weight is not known."""

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    model = nn.Sequential(nn.Linear(3, 4), Scaled(4, 4))
    assert set(boosted(model).targets) == {"0"}


class Turned(nn.Linear):
    """x W^T + b, written otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Kept(nn.Module):
    """Somebody's own map, which keeps its weight (in, out) and its sizes under other names."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.weight = nn.Parameter(torch.randn(rows, columns) / 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.rows
        return torch.einsum("...i,io->...o", x, self.weight).view(*x.shape[:-1], self.columns)


class Dropped(nn.Linear):
    """A linear map in evaluation alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


def test_a_linear_map_is_known_by_what_it_computes() -> None:
    layers = [Turned(4, 4), Kept(4, 6), nn.Tanh(), Dropped(6, 6), Turned(6, 3)]
    model = nn.Sequential(*layers).double()
    optimizer = boosted(model.eval(), kappa=3, layers_per_booster=None)
    assert set(optimizer.targets) == {"0", "1", "4"}
    x, before = torch.randn(8, 4, dtype=torch.float64), model[1].weight.detach().clone()
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    A, B = optimizer.active_factors["1"]
    wanted, product = model(x).detach(), (B @ A).detach()
    optimizer.merge()
    torch.testing.assert_close(model(x), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[1].weight.detach(), before + product.T)
    assert product.abs().max() > 0


def test_falcon_is_adapted_as_peft_adapts_it() -> None:
    config = hf.FalconConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    theirs = get_peft_model(
        hf.FalconForCausalLM(config), LoraConfig(target_modules="all-linear")
    ).base_model.targeted_module_names
    model = hf.FalconForCausalLM(config)
    optimizer = boosted(model, kappa=2)
    assert set(optimizer.targets) == set(theirs) != set()
    ids = torch.arange(3, 15).reshape(2, 6)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.booster_index == 1


def test_a_lazy_linear_is_to_be_called_first() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(4))
    with pytest.raises(
        ValueError, match=r"first forward pass.*2 found, first '1\.weight'.*call it"
    ):
        boosted(model)
    model(torch.ones(1, 3))
    assert set(boosted(model).targets) == {"0", "1"}


class Tied(nn.Module):
    """An embedding that is also the output map, or two blocks that share a weight."""

    def __init__(self, tie_blocks: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.lm_head = nn.Linear(6, 7, bias=False)
        self.lm_head.weight = self.embedding.weight
        if tie_blocks:
            self.blocks[2][0].weight = self.blocks[0][0].weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.lm_head(x)


def test_output_embedding_is_excluded() -> None:
    model = Tied(tie_blocks=False)
    assert set(boosted(model).targets) == {"blocks.0.0", "blocks.1.0", "blocks.2.0"}


def test_output_embedding_of_a_model_without_blocks_is_excluded() -> None:
    """There every linear map is a target, but not one that is an embedding too."""
    embedding = nn.Embedding(7, 6)
    model = nn.Sequential(embedding, nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 7, bias=False))
    model[3].weight = embedding.weight
    assert boosted(model).targets == {"1": "1"}


def test_untied_output_embedding_of_transformers_is_excluded() -> None:
    config = gpt2().config
    config.tie_word_embeddings = False
    assert not any("lm_head" in name for name in boosted(hf.GPT2LMHeadModel(config)).targets)


def test_output_embedding_by_name_is_refused() -> None:
    for model in (Tied(tie_blocks=False), gpt2()):
        before, tensors = anatomy(model), values(model)
        with pytest.raises(ValueError, match="lm_head.*tied"):
            boosted(model, target_modules=["lm_head"])
        assert anatomy(model) == before
        assert same_values(model, tensors)


def test_untied_output_embedding_by_name_is_a_layer() -> None:
    config = gpt2().config
    config.tie_word_embeddings = False
    optimizer = boosted(hf.GPT2LMHeadModel(config), target_modules=["lm_head", "c_attn"])
    assert optimizer.targets["lm_head"] == "lm_head"


def test_a_weight_tied_between_blocks_is_merged_once() -> None:
    """One target with one pair, wherever the weight is used; the function is kept at the merge."""
    model = Tied(tie_blocks=True).double()
    optimizer = boosted(model, kappa=None, layers_per_booster=None)
    assert set(optimizer.targets) == {"blocks.0.0", "blocks.1.0"}
    tokens = torch.randint(7, (4, 5))
    for _ in range(3):
        cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    A, B = optimizer.active_factors["blocks.0.0"]
    W, product = model.blocks[0][0].weight.detach().clone(), (B @ A).detach()
    probe = model(tokens).detach()
    state = model.state_dict()
    assert torch.equal(state["blocks.0.0.weight"], state["blocks.2.0.weight"])
    optimizer.merge()
    torch.testing.assert_close(
        model.blocks[2][0].weight.detach(), W + product, rtol=1e-14, atol=1e-14
    )
    assert model.blocks[2][0].weight is model.blocks[0][0].weight
    torch.testing.assert_close(model(tokens), probe, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_tied_weight_is_the_sum_over_its_uses() -> None:
    model = Tied(tie_blocks=True).double()
    dense = Tied(tie_blocks=True).double()
    optimizer = boosted(model, r=2, layers_per_booster=None)
    with torch.no_grad():
        for pair in optimizer.active_factors.values():
            pair[1].copy_(torch.randn_like(pair[1]))
    dense.load_state_dict(model.state_dict())
    tokens = torch.randint(7, (4, 5))
    for m in (model, dense):
        cross_entropy(m(tokens).flatten(0, 1), tokens.flatten()).backward()
    A, B = optimizer.active_factors["blocks.0.0"]
    G = dense.blocks[0][0].weight.grad
    torch.testing.assert_close(A.grad, B.T @ G, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(B.grad, G @ A.T, rtol=1e-10, atol=1e-12)


def test_a_shared_module_is_one_target() -> None:
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    model = nn.Sequential(block, block, nn.Sequential(nn.Linear(6, 6), nn.Tanh())).double()
    optimizer = boosted(model, kappa=None, layers_per_booster=None)
    assert optimizer.targets == {"0.0": "0", "2.0": "2"}
    x = torch.randn(3, 6, dtype=torch.float64)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    probe = model(x).detach()
    state = model.state_dict()
    assert torch.equal(state["0.0.weight"], state["1.0.weight"])
    optimizer.merge()
    torch.testing.assert_close(model(x), probe, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", ["bert", "gpt2"])
def test_task_head_is_found(build: str) -> None:
    if build == "gpt2":
        assert len(boosted(gpt2()).param_groups) == 1
        return
    model = bert()
    optimizer = boosted(model)
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [
        id(p) for p in model.classifier.parameters()
    ]
    optimizer.finalize()
    assert len(boosted(model, modules_to_save=[]).param_groups) == 1
