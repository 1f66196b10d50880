"""The command line: what it says, to people and machines, and how it ends."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import BertConfig, BertForSequenceClassification

from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.command.main import main, parser

IDS = torch.arange(6)[None]


def tiny() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
    )


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """An original, a trained model, and the ledger between them, of four boosters."""
    model = tiny()
    model.save_pretrained(tmp_path / "original")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "original")
    optimizer = BoostedLowRankOptimizer(
        torch.optim.AdamW, model, kappa=1, lr=0.1, record=tmp_path / "run"
    )
    assert optimizer.chain is not None
    for t in range(4):
        model(input_ids=IDS, labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.chain.score(t, -abs(t - 1.0))
    optimizer.finalize()
    model.save_pretrained(tmp_path / "trained")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *command: object) -> Any:
    """What a command says in JSON."""
    main([*map(str, command), "--json"])
    return json.loads(capsys.readouterr().out)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_ledger_is_exported_and_rolled_back(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, trained = folders / "run", folders / "trained"
    exact = said(capsys, "export", run, "--out", folders / "adapter")
    assert exact["booster"] == 3 and exact["total_error"] == 0
    assert exact["base_model"] == str(folders / "original")
    base = BertForSequenceClassification.from_pretrained(folders / "original")
    adapted = PeftModel.from_pretrained(base, folders / "adapter")
    whole = BertForSequenceClassification.from_pretrained(trained)
    torch.testing.assert_close(logits(adapted), logits(whole))
    cut = said(capsys, "export", run, "--out", folders / "cut", "--rank", 1, "--to", "best")
    assert cut["booster"] == 1 and cut["total_error"] > 0 and set(cut["rank"].values()) == {1}

    rolled = ["rollback", run, "--model", trained, "--to"]
    best = said(capsys, *rolled, "best", "--out", folders / "best")
    assert best == {"folder": str(folders / "best"), "booster": 1, "boosters": 4}
    last = said(capsys, *rolled, 3, "--out", folders / "last")
    first = said(capsys, *rolled, -1, "--out", folders / "first")
    main([*map(str, rolled), "2", "--out", str(folders / "third")])
    told = f"the model after booster 2 of 4 is in {folders / 'third'}\n"
    assert capsys.readouterr() == (told, "")  # and nothing of what transformers has to say
    ends = [
        BertForSequenceClassification.from_pretrained(made["folder"]).state_dict()
        for made in (last, first, best)
    ]
    wanted = [whole.state_dict(), tiny().state_dict()]
    assert all(
        torch.equal(one[n], two[n]) for one, two in zip(ends[:2], wanted, strict=True) for n in two
    )
    assert any(not torch.equal(ends[2][n], ends[0][n]) for n in ends[2])

    with pytest.raises(SystemExit, match="holds something already: choose another --out"):
        main([*map(str, rolled), "2", "--out", str(trained)])
    with pytest.raises(SystemExit, match="to must be from -1 to 3"):
        main([*map(str, rolled), "9", "--out", str(folders / "none")])
    assert not (folders / "none").exists()


def test_the_environment_for_a_bug_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    facts = said(capsys, "env")
    assert facts["torch"]["version"] == torch.__version__
    assert facts["packages"]["peft"] and facts["variables"]["OMP_NUM_THREADS"] == "1"
    assert "a secret" not in json.dumps(facts)
    main(["env"])
    assert any(
        line.split() == ["OMP_NUM_THREADS", "1"] for line in capsys.readouterr().out.split("\n")
    )


def test_a_plan_for_machines_and_its_hint_for_people(
    tmp_path: Path,
) -> None:
    tiny().config.save_pretrained(tmp_path)
    line = ["plan", str(tmp_path), "--length", "16", "--card", "24", "--layers-per-booster", "0.5"]
    options = parser().parse_args(line)
    answer = options.run_command(options)
    facts = json.loads(answer.printed(as_json=True))
    assert facts["targets"] == 12 and facts["drawn"] == 1 and facts["needs"][0]["fits"] is True
    assert answer.text == answer.printed(as_json=False) and "--residual-device cpu" in answer.text


def test_how_a_command_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:  # a string is 1, printed to stderr
        main(["plot", str(tmp_path), "--json"])
    assert str(stop.value.code).startswith("torch-xgb: no ledger at")
    assert "\n" not in str(stop.value.code)
    assert f"torch-xgb: {json.loads(capsys.readouterr().out)['error']}" == stop.value.code
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2 and "rollback  write a model as" in capsys.readouterr().err
    for wrong in (["rollback", "run"], ["plan", "x", "--batch", "many"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
    assert "usage: torch-xgb" in capsys.readouterr().err
    for wrong, says in (
        (["plan", "gpt2", "--lenght", "8"], "there is no --lenght 8; is --length meant?"),
        (["finetune", "--model", "m", "--kapa=4"], "there is no --kapa=4; is --kappa meant?"),
        (["finetune", "--task", "poetry"], "invalid choice: 'poetry'"),
        (["env", "now"], "there is no now"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and says in said and len(said.splitlines()) <= 3


def test_the_lines_of_the_pages_are_understood() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    pages = "\n".join(page.read_text(encoding="utf-8") for page in docs.rglob("*.md"))
    lines = re.findall(r"^torch-xgb (.+)$", pages, flags=re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        assert parser().parse_args(shlex.split(line)).run_command


def test_a_shell_completes_words(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="an extra of its own")
    line, words = "torch-xgb rollback run --mo", tmp_path / "words"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch_xgb"],
        env={**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(words)},
    )
    assert done.returncode == 0 and words.read_text().strip() == "--model"


def test_a_reader_that_has_enough_is_no_failure() -> None:
    """As ``| head`` closes the pipe."""
    command = f"{sys.executable} -m torch_xgb env --json | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")
    assert "Traceback" not in run.stderr
