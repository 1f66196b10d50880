"""accelerate, the Trainer and the launcher over DeepSpeed, with two processes."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

pytest.importorskip("deepspeed", reason="an extra of its own")

from processes import run_once
from zero_frameworks import frameworks, trained  # noqa: E402
from zero_runs import Case, alone  # noqa: E402

pytestmark = pytest.mark.distributed

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "deepspeed_zero.py"


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("routes"))
    return run_once(tmp_path_factory, frameworks, 2, folder)[0]


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("name", ["accelerate 2", "accelerate 3, JSON"])
def test_accelerate_trains_as_one_process(routes: dict[str, Any], name: str) -> None:
    ours, one = routes[name], alone(Case(2, clip=0.5, accumulation=2, steps=8))
    assert ours["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert ours["norms"][:8] == pytest.approx(one["norms"], abs=1e-5)
    assert farthest(ours["weights"], one["weights"]) < 1e-5


def test_accelerate_resumes_bitwise(routes: dict[str, Any]) -> None:
    ours = routes["accelerate 2"]
    assert ours["again"] == ours["losses"][8:]
    assert farthest(ours["x"], ours["weights"]) == 0


def test_trainer_trains_as_one_process(routes: dict[str, Any], tmp_path: Path) -> None:
    one = trained(None, False, str(tmp_path))
    for name in ("Trainer 3", "Trainer 2, JSON"):
        assert routes[name]["losses"] == pytest.approx(one["losses"], abs=1e-5), name
        assert routes[name]["norms"] == pytest.approx(one["norms"], abs=1e-4), name
        assert routes[name]["boosters"] == one["boosters"]
        assert farthest(routes[name]["weights"], one["weights"]) < 1e-4, name


def test_trainer_resumes_bitwise(routes: dict[str, Any]) -> None:
    whole, resumed = routes["Trainer 3"], routes["Trainer 3, resumed"]
    assert farthest(whole["weights"], resumed["weights"]) == 0


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(EXAMPLE), "--stage", "3", "--json"]
    command += ["--folder", str(folder), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run of which one process was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    launcher = launch(folder, "--steps", "100000", "--save-every", "3")
    while not (folder / "latest").exists():
        assert launcher.poll() is None
        time.sleep(0.1)
    psutil.Process(launcher.pid).children()[-1].kill()
    launcher.communicate(timeout=120)
    return folder, launcher.returncode


@pytest.mark.long
def test_a_killed_process_ends_the_run_with_an_error(killed: tuple[Path, int]) -> None:
    """And not by its last step, which would come hours later."""
    assert killed[1] != 0


@pytest.mark.long
def test_the_checkpoint_of_a_killed_run_resumes(killed: tuple[Path, int]) -> None:
    folder, _ = killed
    reached = int((folder / "latest").read_text().removeprefix("global_step"))
    resumed = launch(folder, "--steps", str(reached + 4), "--save-every", "1000")
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0
    assert f"resumed at step {reached}" in output
    assert (folder / "weights.bin").exists()
