import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recording import Run, adapted, bert, config_of, gpt2, logits, same, total_update, weights_of
from torch_xgb import BoostedLowRankOptimizer, Chain
from torch_xgb.formulas.spectrum import compress, effective_rank, spectra
from torch_xgb.ledger.export import ExportReport

MODELS = pytest.mark.parametrize("make", [bert, gpt2])


def dense_error(run: Run, rank: int) -> tuple[dict[str, float], float]:
    """The errors of the best approximations, by the SVD of the dense updates."""
    lost, norms = {}, {}
    for name in run.chain.header.weights:
        sigma = torch.linalg.svdvals(total_update(run, name))
        lost[name], norms[name] = float(sigma[rank:].norm()), float(sigma.norm())
    total = torch.tensor(list(lost.values())).norm() / torch.tensor(list(norms.values())).norm()
    return {name: lost[name] / norms[name] for name in lost if norms[name]}, float(total)


# Exact


@MODELS
@pytest.mark.parametrize("boosters", [1, 5, 40], ids=lambda n: f"{n}boosters")
def test_the_exact_adapter_computes_what_the_trained_model_computes(
    tmp_path: Path, make: type[nn.Module], boosters: int
) -> None:
    run = Run(make(), tmp_path / "run", ranks=(1, 2))
    run.boost(boosters)
    report = run.chain.to_peft(tmp_path / "adapter")
    assert max(report.total_error, *report.error.values()) < 1e-12
    loaded = adapted(make(), tmp_path / "adapter")
    assert torch.allclose(logits(loaded), logits(run.model), rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload()
    for name, value in weights_of(merged).items():
        assert torch.allclose(value, run.after[boosters - 1][name], rtol=1e-5, atol=1e-6), name


def test_stacked_factors_are_kept_as_they_are_until_they_outgrow_the_matrix(tmp_path: Path) -> None:
    run = Run(bert())
    run.boost(40)  # twenty of rank 1 for each weight, and the smaller side is 16
    few = run.chain.to_peft(tmp_path / "few", to=9)
    many = run.chain.to_peft(tmp_path / "many")
    assert set(few.rank.values()) == {5}
    assert set(many.rank.values()) == {16}
    name = f"{run.layers[0].targets[0].name}.weight"
    tensors = load_file(tmp_path / "few" / "adapter_model.safetensors")
    left, right = run.chain.delta(name, to=9)
    module = f"base_model.model.{name.removesuffix('.weight')}"
    assert torch.equal(tensors[f"{module}.lora_A.weight"], right.float())
    assert torch.equal(tensors[f"{module}.lora_B.weight"], left.float())


@MODELS
def test_an_adapter_of_an_earlier_booster(tmp_path: Path, make: type[nn.Module]) -> None:
    run = Run(make(), ranks=(2,))
    run.boost(5)
    run.chain.to_peft(tmp_path, to=2)
    earlier = make()
    earlier.load_state_dict(run.after[2], strict=False)
    assert torch.allclose(logits(adapted(make(), tmp_path)), logits(earlier), rtol=1e-5, atol=1e-5)


def test_a_model_trained_in_16_bits(tmp_path: Path) -> None:
    run = Run(bert(torch.bfloat16), ranks=(2,))
    run.boost(6)
    run.chain.to_peft(tmp_path)
    merged = weights_of(adapted(bert(torch.bfloat16), tmp_path).merge_and_unload())
    exact = weights_of(run.chain.apply(bert(torch.bfloat16), exact=True))
    for name in exact:
        assert torch.allclose(merged[name], exact[name], rtol=2**-7, atol=1e-4), name


def test_a_layer_that_was_never_drawn_gets_no_adapter(tmp_path: Path) -> None:
    run = Run(bert())
    run.boost(1)
    report = run.chain.to_peft(tmp_path)
    drawn = {f"{target.name}.weight" for target in run.layers[0].targets}
    assert set(report.rank) == drawn
    assert set(config_of(tmp_path)["target_modules"]) == {n.removesuffix(".weight") for n in drawn}
    assert torch.allclose(logits(adapted(bert(), tmp_path)), logits(run.model), atol=1e-5)


def test_patterns_of_ranks_match_whole_names(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(12)])

    run = Run(model(), ranks=(1, 2, 3))  # block 1 with rank 2, block 11 with rank 3
    run.boost(12)
    report = run.chain.to_peft(tmp_path)
    assert (report.rank["1.0.weight"], report.rank["11.0.weight"]) == (2, 3)
    loaded = adapted(model(), tmp_path)
    for name, rank in report.rank.items():
        layer = loaded.base_model.model.get_submodule(name.removesuffix(".weight"))
        assert (layer.r["default"], layer.scaling["default"]) == (rank, 1.0)
    x = torch.randn(3, 16)
    assert torch.allclose(loaded(x), run.model(x), atol=1e-6)


class Nested(nn.Module):
    """A target whose name is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.inner = nn.ModuleDict({"fc": nn.Linear(8, 8)})

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner["fc"](x).tanh())


def test_a_target_named_as_another_ends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = Run(Nested())
    assert [layer.name for layer in run.layers] == ["fc", "inner.fc"]
    run.boost(1)
    run.chain.to_peft(tmp_path)
    assert config_of(tmp_path)["target_modules"] == "(fc)"
    torch.manual_seed(0)
    loaded = adapted(Nested(), tmp_path)
    x = torch.randn(3, 8)
    assert torch.allclose(loaded(x), run.model(x), atol=1e-6)
    assert type(loaded.base_model.model.inner["fc"]) is nn.Linear


def test_a_tied_weight_gets_an_adapter_in_every_module(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        blocks = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        blocks[2][0].weight = blocks[0][0].weight
        return blocks

    run = Run(model())
    run.boost(4)
    run.chain.to_peft(tmp_path)
    x = torch.randn(3, 6)
    assert torch.allclose(adapted(model(), tmp_path)(x), run.model(x), atol=1e-6)


# Biases


@MODELS
@pytest.mark.parametrize(("adapter", "bias"), [("lora", "targets"), ("direft", "none")])
@pytest.mark.parametrize("rank", [None, 3])
def test_biases_travel_too(
    tmp_path: Path, make: type[nn.Module], adapter: str, bias: str, rank: int | None
) -> None:
    run = Run(make(), adapter=adapter, bias=bias, ranks=(1,))
    run.boost(5)
    run.chain.to_peft(tmp_path, rank=rank)  # three boosters at most for each weight
    assert config_of(tmp_path)["lora_bias"] is True
    loaded = adapted(make(), tmp_path)
    assert torch.allclose(logits(loaded), logits(run.model), rtol=1e-5, atol=1e-5)


def test_biases_of_some_modules_only_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6, bias=False)) for _ in range(3)]
    )
    run = Run(model, adapter="direft")
    run.boost(3)
    with pytest.raises(ValueError, match="a bias for every module or for none"):
        run.chain.to_peft(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# Of a rank


@MODELS
@pytest.mark.parametrize("rank", [1, 3, 16, 99])
@pytest.mark.parametrize("boosters", [8, 40])
def test_the_error_of_a_cut_is_the_dense_svds(
    tmp_path: Path, make: type[nn.Module], rank: int, boosters: int
) -> None:
    run = Run(make(), tmp_path / "run", ranks=(1, 2))
    run.boost(boosters)
    report = run.chain.to_peft(tmp_path / "adapter", rank=rank)
    errors, total = dense_error(run, rank)
    assert report.error == pytest.approx(errors, abs=1e-7)
    assert report.total_error == pytest.approx(total, abs=1e-7)
    assert max(report.rank.values()) <= rank
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, error in report.error.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        A, B = (tensors[f"{module}.lora_{x}.weight"].double() for x in "AB")
        update = total_update(run, name)
        assert float((B @ A - update).norm() / update.norm()) == pytest.approx(error, abs=1e-6)
    written = sum(tensor.numel() for tensor in tensors.values())
    assert report.parameters == written
    adapted(make(), tmp_path / "adapter")


class Sizes(TorchDispatchMode):
    """Notes how large the largest tensor is that any operation returns."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self.largest = max(self.largest, tensor.numel())
        return result


def test_a_cut_forms_no_dense_matrix() -> None:
    out_features, in_features, R = 300, 500, 6
    left, right = torch.randn(out_features, R).double(), torch.randn(R, in_features).double()
    with Sizes() as sizes:
        B, A, sigma = compress(left, right, 2)
    assert 0 < sizes.largest <= in_features * R
    U, wanted, Vh = torch.linalg.svd(left @ right, full_matrices=False)
    assert torch.allclose(sigma, wanted[:R])
    assert torch.allclose(B @ A, U[:, :2] * wanted[:2] @ Vh[:2], atol=1e-8)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "8"])
def test_a_wrong_rank(tmp_path: Path, rank: object) -> None:
    run = Run(bert())
    run.boost(1)
    error = ValueError if rank in (0, -1) else TypeError
    with pytest.raises(error, match="rank must be a positive integer or None"):
        run.chain.to_peft(tmp_path, rank=rank)  # type: ignore[arg-type]


# What else is in the folder


def test_the_head_is_in_the_adapter(tmp_path: Path) -> None:
    run = Run(bert())
    run.boost(3)
    run.chain.to_peft(tmp_path)
    assert config_of(tmp_path)["modules_to_save"] == ["classifier"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(
        tensors["base_model.model.classifier.weight"], run.after[2]["classifier.weight"]
    )
    base = bert()
    nn.init.normal_(base.classifier.weight)
    assert torch.allclose(logits(adapted(base, tmp_path)), logits(run.model), atol=1e-5)


class Ambiguous(nn.Module):
    """A module trained in full whose name is the end of targets' names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"out": nn.Linear(8, 8)}) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["out"](x)
        return self.out(x)


def test_a_head_that_peft_would_mistake_is_refused(tmp_path: Path) -> None:
    run = Run(Ambiguous())
    run.boost(1)
    with pytest.raises(ValueError, match="'blocks.0.out' for the module 'out'"):
        run.chain.to_peft(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


class Aside(Ambiguous):
    """One whose name is the end of a frozen module's, which is no target."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 8)}) for _ in range(3))
        self.aside = nn.ModuleDict({"layout": nn.Linear(8, 8, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["up"](x)
        return self.out(x) + self.aside["layout"](x)


def test_a_frozen_module_that_peft_would_take_for_a_head_is_refused(tmp_path: Path) -> None:
    told: dict[str, Any] = {"modules_to_save": ["out"], "exclude_modules": ["aside", "layout"]}
    optimizer = BoostedLowRankOptimizer(
        torch.optim.SGD, Aside(), kappa=1, record=tmp_path, lr=0.1, **told
    )
    optimizer.model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    for chain in (optimizer.chain, Chain.load(tmp_path)):
        assert chain is not None and chain.header.saved_modules == ("out",)
        with pytest.raises(ValueError, match=r"take 'aside\.layout' for the module 'out'"):
            chain.to_peft(tmp_path / "adapter")


class Shared(nn.Module):
    """A bias that two modules of the head hold, and an embedding that reads the answer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.read = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.head = nn.ModuleDict({"one": nn.Linear(8, 8), "two": nn.Linear(8, 8)})
        self.head["two"].bias = self.head["one"].bias
        self.read.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.read(self.head["one"](x) * self.head["two"](x))


@pytest.mark.parametrize("saved", [["head"], ["embed", "read"], ["head", "embed"]])
def test_parameters_that_modules_trained_in_full_share(tmp_path: Path, saved: list[str]) -> None:
    told: dict[str, Any] = {"modules_to_save": saved, "target_modules": ["blocks.1.0"]}
    told["exclude_modules"] = ["head", "embed", "read"]
    optimizer = BoostedLowRankOptimizer(
        torch.optim.SGD, Shared(), kappa=1, record=tmp_path / "run", lr=0.1, **told
    )
    x = torch.randn(2, 8)
    for _ in range(2):
        optimizer.model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model = optimizer.finalize()
    chain = Chain.load(tmp_path / "run")
    if saved == ["head", "embed"]:
        with pytest.raises(ValueError, match=r"'read.weight' is tied to 'embed.weight', which was"):
            chain.to_peft(tmp_path / "adapter")
        return
    chain.to_peft(tmp_path / "adapter")
    loaded = adapted(Shared(), tmp_path / "adapter")
    assert torch.allclose(loaded(x), model(x), atol=1e-6)


def one_step(model: nn.Module, run: Path, **told: Any) -> None:
    optimizer = BoostedLowRankOptimizer(torch.optim.SGD, model, kappa=1, record=run, lr=0.1, **told)
    model(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()


def test_a_head_with_statistics_of_its_own_is_refused(tmp_path: Path) -> None:
    model = Shared()
    model.head["one"] = nn.BatchNorm1d(8)
    told: dict[str, Any] = {"modules_to_save": ["head"], "exclude_modules": ["embed", "read"]}
    one_step(model, tmp_path / "run", **told)
    with pytest.raises(ValueError, match=r"would not load 'head.one.running_mean', a buffer"):
        Chain.load(tmp_path / "run").to_peft(tmp_path / "adapter")


class Scaled(Shared):
    """Has a list of Parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(8))])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scales[0]


def test_a_list_of_parameters_trained_in_full_is_refused(tmp_path: Path) -> None:
    model = Scaled()
    told: dict[str, Any] = {"modules_to_save": ["scales"], "target_modules": ["blocks.1.0"]}
    told["exclude_modules"] = ["head", "embed", "read"]
    one_step(model, tmp_path / "run", **told)
    with pytest.raises(ValueError, match=r"would not load 'scales.0', .* a list of Parameters"):
        Chain.load(tmp_path / "run").to_peft(tmp_path / "adapter")


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    run = Run(model)
    run.boost(2)
    run.chain.to_peft(tmp_path / "adapter")
    config = config_of(tmp_path / "adapter")
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["auto_mapping"]["base_model_class"] == "BertForSequenceClassification"  # type: ignore[index]
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model:" not in card  # the hub takes no paths
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    assert torch.allclose(logits(loaded), logits(run.model), atol=1e-5)


def test_the_model_card(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = Run(bert())
    run.boost(8)
    run.chain.to_peft(tmp_path, rank=2, base_model_name_or_path="google-bert/bert-base-uncased")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "library_name": "peft",
        "base_model": "google-bert/bert-base-uncased",
        "tags": ["lora", "torch_xgb"],
    }
    assert "8 low-rank boosters" in card.text
    assert "best approximation of rank 2" in card.text
    assert "Trained in full and included: classifier." in card.text


def test_nothing_to_export(tmp_path: Path) -> None:
    run = Run(bert())
    with pytest.raises(RuntimeError, match="nothing was trained"):
        run.chain.to_peft(tmp_path)
    run.boost(1)
    with pytest.raises(ValueError, match="no update to export"):
        run.chain.to_peft(tmp_path, to=-1)


def test_the_report_is_plain(tmp_path: Path) -> None:
    run = Run(bert())
    run.boost(4)
    report = run.chain.to_peft(tmp_path, rank=1)
    assert isinstance(report, ExportReport)
    assert report.folder == tmp_path
    assert 0 < report.total_error < 1
    assert same(weights_of(run.model), run.after[3])


# The formulas


@pytest.mark.parametrize(("out_features", "in_features", "R"), [(7, 5, 3), (5, 7, 6), (4, 4, 9)])
def test_spectra_are_those_of_the_dense_products(
    out_features: int, in_features: int, R: int
) -> None:
    left, right = torch.randn(out_features, R).double(), torch.randn(R, in_features).double()
    widths = list(range(R + 1))
    for width, sigma in zip(widths, spectra(left, right, widths), strict=True):
        dense = torch.linalg.svdvals(left[:, :width] @ right[:width])
        k = min(len(dense), len(sigma))
        assert torch.allclose(sigma[:k], dense[:k], atol=1e-12)
        assert float(sigma[k:].sum()) < 1e-12


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([2.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(4)) == 0.0
    assert 1 < effective_rank(torch.tensor([2.0, 1.0])) < 2


def test_an_export_follows_no_link_and_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    run = Run(bert())
    run.boost(2)
    folder = tmp_path / "adapter"
    folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).symlink_to(victim)
        (folder / f"{name}.part").symlink_to(victim)
    (folder / "README.md").write_text("# My project")
    run.chain.to_peft(folder, base_model_name_or_path="base")
    assert victim.read_text() == "mine"
    assert (folder / "README.md").read_text() == "# My project"
    assert not (folder / "adapter_config.json").is_symlink()
    (folder / "README.md").unlink()
    for rank in (None, 1):
        run.chain.to_peft(folder, rank=rank, base_model_name_or_path="base")
    assert "rank 1" in (folder / "README.md").read_text()


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bert())
    run.boost(2)
    calls = 0

    def no_space(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        run.chain.to_peft(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    monkeypatch.undo()
    (tmp_path / "adapter" / "adapter_config.json").mkdir(parents=True)
    (tmp_path / "file").touch()
    for taken in ("adapter", "file"):
        with pytest.raises(ValueError, match="choose another"):
            run.chain.to_peft(tmp_path / taken)
    with pytest.raises(ValueError, match="is a folder"):
        run.chain.save(tmp_path / "adapter")
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["adapter_config.json"]
