import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from benchmarks.methods.minilm import METHODS
from pretrained import needs_minilm, write_rows

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "finetune_classifier.py"


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


@needs_minilm
def test_the_demo_compares_saves_and_reloads(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", *sentences(24))
    dev = write_rows(tmp_path / "dev.jsonl", *sentences(8))
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


# Several processes

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)


def steps_printed(done: subprocess.CompletedProcess[str]) -> dict[int, str]:
    """What the first process printed of each step."""
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    return {int(line.split()[1].rstrip(":")): line for line in lines}


@pytest.mark.long
@needs_minilm
@pytest.mark.distributed
def test_a_killed_run_ends_and_the_next_goes_on(tmp_path: Path) -> None:
    script, out = ROOT / "examples" / "ddp.py", tmp_path / "checkpoint"
    options = ("--steps", 4, "--batch-size", 4, "--save-every", 2, "--out", out)
    killed = run(*TWO, write_killer(tmp_path, script), *options, cwd=tmp_path)
    assert killed.returncode != 0 and out.exists(), killed.stdout
    assert list(steps_printed(run(*TWO, script, *options, cwd=tmp_path))) == [2, 3]


def write_killer(folder: Path, script: Path) -> Path:
    """The script, but its second process dies in the third step as if out of memory."""
    killer = folder / "killer.py"
    killer.write_text(
        "import os, runpy, signal, torch\n"
        "calls, step = [], torch.nn.utils.clip_grad_norm_\n"
        "def die(*args, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(*args, **kwargs)\n"
        "torch.nn.utils.clip_grad_norm_ = die\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n",
        encoding="utf-8",
    )
    return killer


@needs_minilm
@pytest.mark.distributed
def test_the_fsdp2_example_saves_in_every_process(tmp_path: Path) -> None:
    options = ("--steps", 2, "--batch-size", 4, "--save-every", 2, "--out", tmp_path / "out")
    done = run(*TWO, ROOT / "examples" / "fsdp2.py", *options, cwd=tmp_path)
    assert list(steps_printed(done)) == [0, 1]
    saved = {file.name for file in (tmp_path / "out" / "2").iterdir()}
    assert saved == {"model", "optimizer-0.pt", "optimizer-1.pt"}


@needs_minilm
@pytest.mark.distributed
def test_the_accelerate_example_trains_in_two_processes(tmp_path: Path) -> None:
    script = ROOT / "examples" / "accelerate_loop.py"
    options = ("--steps", 2, "--batch-size", 2, "--out", tmp_path / "state")
    done = run(*TWO, script, *options, cwd=tmp_path)
    assert list(steps_printed(done)) == [0, 1]
    assert done.stdout.count("trained in 2 processes") == 1


@needs_minilm
@pytest.mark.distributed
def test_the_trainer_example_trains_in_two_processes(tmp_path: Path) -> None:
    options = ("--steps", 2, "--batch-size", 2, "--save-steps", 2, "--out", tmp_path / "out")
    done = run(*TWO, ROOT / "examples" / "trainer.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best accuracy") == 1  # one run in two processes, not two runs
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_accelerate_reads_the_config_files(name: str) -> None:
    config = load_config_from_file(str(ROOT / "examples" / "accelerate" / f"{name}.yaml"))
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[name]
    assert name != "fsdp2" or config.fsdp_config["fsdp_version"] == 2


# The command line


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_classifier", DEMO)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_minilm
def test_the_demo_exits_with_one_line(tmp_path: Path, demo: ModuleType) -> None:
    good, empty = (
        write_rows(tmp_path / "good.jsonl", *sentences(4)),
        write_rows(tmp_path / "empty.jsonl"),
    )
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
