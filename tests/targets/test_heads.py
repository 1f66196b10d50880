"""What is trained in full beside the boosters by default, and what is said to stay frozen."""

import ast
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.optim import AdamW

from torch_xgb import BoostedLowRankOptimizer
from zoo import SIZES


def bert() -> hf.BertConfig:
    return hf.BertConfig(**SIZES)


def found(model: nn.Module, **settings: Any) -> set[str]:
    """The modules trained in full, which are what the optimizer has beside the factors."""
    optimizer = BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1, **settings)
    heads = set(optimizer.boosting.selection.heads)
    trained = {id(p) for group in optimizer.param_groups[1:] for p in group["params"]}
    assert trained == {id(p) for n in heads for p in model.get_submodule(n).parameters()}
    optimizer.finalize()
    return heads


class Around(nn.Module):
    """Somebody's own module, with parts of its own before and after a pretrained model."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.features = nn.Linear(5, 16)
        self.body = body
        self.scores = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))


class Tied(Around):
    """A language model of somebody's own on a pretrained body: the table is the body's."""

    def __init__(self) -> None:
        super().__init__(hf.BertModel(bert()))
        self.scores = nn.ModuleDict({"dense": nn.Linear(16, 16), "out": nn.Linear(16, 40)})
        self.scores["out"].weight = self.body.embeddings.word_embeddings.weight


class Plain(nn.Module):
    """A transformer of no library: an embedding, an encoder, and what follows it."""

    def __init__(self, out: int = 3, inputs: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16) if inputs else nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.encoder(self.embed(x))))


class Staged(nn.Module):
    """Stages with a passage between them, as a Swin has, and two heads in a row."""

    def __init__(self) -> None:
        super().__init__()

        def stage(width: int) -> nn.Sequential:
            return nn.Sequential(
                *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))
            )

        self.features = nn.Sequential(stage(4), nn.Linear(4, 8).requires_grad_(False), stage(8))
        self.pre_head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)


class Timm(nn.Module):
    """As timm's models say which their classifier is: what pools before it was pretrained."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2)))
        self.attn_pool = nn.Linear(4, 4)
        self.head, self.head_dist = nn.Linear(4, 3), nn.Linear(4, 3)

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int) -> None: ...


class Follows(Plain):
    """What follows the blocks is no linear map, and what would be is between them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.down = nn.Conv1d(16, 16, 1)
        self.later = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        del self.out
        self.out = head


def sentence_loss() -> nn.Module:
    """As sentence-transformers builds a loss: the model, and a classifier over pairs."""
    words = nn.Module()
    words.auto_model = hf.BertModel(bert())
    loss = nn.Module()
    loss.model, loss.classifier = nn.Sequential(words, nn.Identity()), nn.Linear(48, 3)
    return loss


T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
SPEECH = {
    **{k: SIZES[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size")},
    **{"num_hidden_layers": 2, "conv_dim": (8,), "conv_kernel": (3,), "conv_stride": (2,)},
    **{"num_feat_extract_layers": 1, "num_conv_pos_embeddings": 4},
    **{"num_conv_pos_embedding_groups": 2, "vocab_size": 32},
}
CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "around": (lambda: Around(hf.BertModel(bert())), {"features", "scores"}),
    "around-a-task": (
        lambda: Around(hf.BertForSequenceClassification(bert())),
        {"features", "body.classifier", "scores"},
    ),
    "around-timm": (lambda: Around(Timm()), {"features", "scores", "body.head", "body.head_dist"}),
    "tied-to-the-body": (Tied, {"features", "scores.dense"}),
    "sentence-loss": (sentence_loss, {"classifier"}),
    "plain": (Plain, {"out"}),
    "plain-language-model": (lambda: Plain(40), set()),
    "convolutions": (
        lambda: Follows(nn.Sequential(nn.Conv1d(16, 8, 1), nn.ReLU(), nn.Conv1d(8, 3, 1))),
        {"out"},
    ),
    "recurrent": (lambda: Follows(nn.LSTM(16, 8)), {"out"}),
    "no-map": (lambda: Follows(nn.LayerNorm((2, 16))), set()),
    "staged": (Staged, {"pre_head", "head"}),
    "timm": (Timm, {"head", "head_dist"}),
    "base-model": (lambda: hf.BertModel(bert()), set()),
    "language-model": (lambda: hf.BertForMaskedLM(bert()), set()),
    "t5-questions": (lambda: hf.T5ForQuestionAnswering(hf.T5Config(**T5)), {"qa_outputs"}),
    "t5-language": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), set()),
    "speech-ctc": (lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SPEECH)), {"lm_head"}),
}


@pytest.mark.filterwarnings("ignore:outside the repeated blocks these stay frozen. 'down'")
@pytest.mark.parametrize("name", CASES)
def test_what_is_new_is_found(name: str) -> None:
    build, expected = CASES[name]
    assert found(build()) == expected


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (hf.BertForSequenceClassification, {"classifier"}),
        (hf.BertForMaskedLM, {"cls.predictions.transform"}),
        (hf.BertModel, set()),
    ],
)
def test_what_a_checkpoint_did_not_hold_is_found(
    task: Any, expected: set[str], tmp_path: Path
) -> None:
    """A masked-LM head is the model's own, unless from_pretrained had to make one."""
    hf.BertModel(bert()).save_pretrained(tmp_path)
    assert found(task.from_pretrained(tmp_path)) == expected


def test_new_maps_inside_the_blocks_are_found(tmp_path: Path) -> None:
    """A decoder made of an encoder has cross-attention that nothing was loaded into."""
    hf.BertModel(bert()).save_pretrained(tmp_path)
    model = hf.EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path)
    heads = found(model)
    crossed = {f"decoder.bert.encoder.layer.{i}.crossattention" for i in range(3)}
    assert heads == {*crossed, "decoder.cls.predictions.transform"}


def test_what_was_frozen_by_hand_stays_frozen_and_unsaid() -> None:
    model = Plain(inputs=True)
    model.embed.requires_grad_(False)
    model.out.requires_grad_(False)
    assert found(model) == set()
    assert found(model.requires_grad_(False), exclude_modules=["embed"]) == {"out"}


@pytest.mark.parametrize(
    ("settings", "expected", "said"),
    [
        ({}, {"out"}, "embed"),
        ({"modules_to_save": []}, set(), None),
        ({"modules_to_save": ["embed"]}, {"embed"}, "out"),
        ({"modules_to_save": ["embed", "out"]}, {"embed", "out"}, None),
        ({"exclude_modules": ["embed"]}, {"out"}, None),
        ({"target_modules": ["linear1", "embed", "out"]}, set(), None),
        ({"target_modules": ["linear1"]}, {"out"}, None),
    ],
)
def test_what_stays_frozen_is_said_once(
    settings: dict[str, Any], expected: set[str], said: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert found(Plain(inputs=True), **settings) == expected
    messages = [str(w.message) for w in caught]
    assert len(messages) == (said is not None)
    if said is not None:
        assert f"stay frozen: '{said}'" in messages[0]
        (listed,) = re.findall(r"modules_to_save=(\[.*?\])", messages[0].partition("target_mod")[0])
        assert set(ast.literal_eval(listed)) == {*expected, said}  # what is trained stays so
        assert Path(caught[0].filename).name == Path(__file__).name


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        self.head = nn.Linear(4, 2)
        self.aux = nn.ModuleDict({"head": nn.Linear(4, 2), "lm_head": nn.Linear(4, 2)})


def test_one_name_at_two_depths_is_all_of_them_and_said() -> None:
    unsaid: dict[str, Any] = {"exclude_modules": ["aux", "head"]}
    with pytest.warns(UserWarning, match=r"'head' is .* the ending of 'aux\.head': all") as said:
        assert found(Nested(), modules_to_save=["head"], **unsaid) == {"head", "aux.head"}
    assert Path(said[0].filename).name == Path(__file__).name
    assert found(Nested(), modules_to_save=["aux.head"], **unsaid) == {"aux.head"}
    assert found(Nested(), modules_to_save="head", **unsaid) == {"head"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, True),
        ({"target_modules": ["query"]}, True),
        ({"modules_to_save": ["scores"]}, True),
        ({"modules_to_save": []}, False),
        ({"exclude_modules": ["w", "scale"]}, False),
        ({"target_parameters": ["w"], "exclude_modules": ["scale"]}, False),
    ],
)
def test_parameters_in_no_module_of_their_own_are_said_to_stay_frozen(
    settings: dict[str, Any], said: bool
) -> None:
    """Around a pretrained model, whatever else there is is new."""
    model = Around(hf.BertModel(bert()))
    model.w, model.scale = nn.Parameter(torch.ones(3, 16)), nn.Parameter(torch.ones(()))
    model.kept = nn.Parameter(torch.ones(()), requires_grad=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found(model, **settings)
    messages = [str(w.message) for w in caught if "these Parameters" in str(w.message)]
    assert len(messages) == said
    assert all("frozen: 'w', 'scale'. " in one and "'kept'" not in one for one in messages)


TAPAS = {
    **{k: SIZES[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size")},
    **{"num_hidden_layers": 2, "vocab_size": 40, "max_position_embeddings": 32},
    "num_aggregation_labels": 0,
}


def said_of_bare(model: nn.Module, **settings: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found(model, **settings)
    (*said,) = (str(w.message) for w in caught if "these Parameters" in str(w.message))
    return re.findall("'([^']*)'", said[0].partition(". ")[0]) if said else []


def test_a_library_s_head_in_no_module_of_its_own_is_said_to_stay_frozen(tmp_path: Path) -> None:
    model = hf.TapasForQuestionAnswering(hf.TapasConfig(**TAPAS))
    head = ["output_weights", "column_output_weights", "output_bias", "column_output_bias"]
    assert said_of_bare(model) == head
    assert said_of_bare(Around(model)) == [f"body.{name}" for name in head]
    assert said_of_bare(model, modules_to_save=[]) == []
    model.save_pretrained(tmp_path / "whole")
    model.tapas.save_pretrained(tmp_path / "base")
    assert said_of_bare(type(model).from_pretrained(tmp_path / "base")) == head
    assert said_of_bare(type(model).from_pretrained(tmp_path / "whole")) == []


def test_what_a_checkpoint_did_not_hold_is_said_wherever_it_is(tmp_path: Path) -> None:
    """A mask token among embeddings that were loaded; the bias over a vocabulary is none."""
    sizes = {**{k: SIZES[k] for k in TAPAS if k in SIZES}, "num_hidden_layers": 4}
    config = hf.ViTConfig(**sizes, image_size=4, patch_size=2, num_channels=1, encoder_stride=2)
    hf.ViTModel(config).save_pretrained(tmp_path / "vit")
    model = hf.ViTForMaskedImageModeling.from_pretrained(tmp_path / "vit")
    assert said_of_bare(model) == ["vit.embeddings.mask_token"]
    hf.BertModel(bert()).save_pretrained(tmp_path / "bert")
    assert said_of_bare(hf.BertForMaskedLM.from_pretrained(tmp_path / "bert")) == []


def test_a_module_made_of_them_is_found() -> None:
    model = Around(hf.BertModel(bert()))
    model.w = nn.ParameterList([nn.Parameter(torch.ones(3, 16)), nn.Parameter(torch.ones(()))])
    assert found(model) == {"features", "scores", "w"}


def test_maps_that_stay_frozen_are_said_whatever_their_kind() -> None:
    model = Plain()
    model.patch = nn.Conv1d(2, 2, 1)
    with pytest.warns(UserWarning, match="stay frozen: 'patch'"):
        assert found(model, modules_to_save=["out"]) == {"out"}


def test_a_found_head_is_trained_and_the_rest_is_not() -> None:
    model = Plain()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = BoostedLowRankOptimizer(
        torch.optim.SGD, model, kappa=2, lr=0.1, exclude_modules=["out_proj"]
    )
    for _ in range(4):
        model(torch.arange(6).reshape(2, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.finalize()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"out.weight", "out.bias"} <= moved
    assert all(n.startswith("out.") or ".linear" in n for n in moved)


def test_of_the_libraries_as_installed() -> None:
    timm: ModuleType = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2)
    assert found(model) == {"head"}
    models = pytest.importorskip("torchvision.models")
    assert found(models.VisionTransformer(32, 16, 2, 2, 16, 32)) == {"heads"}


class Convolutions(nn.Module):
    """As timm's ResNets: the classifier is the one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten())
        self.fc = nn.Linear(4, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None: ...


def test_a_model_whose_only_linear_map_is_its_head_says_so_and_how_to_adapt_it() -> None:
    with pytest.raises(ValueError, match=r"but 'fc', trained in full.*modules_to_save=\[\]"):
        BoostedLowRankOptimizer(AdamW, Convolutions())
    told = BoostedLowRankOptimizer(AdamW, Convolutions(), modules_to_save=[])
    assert set(told.targets) == {"fc"}
