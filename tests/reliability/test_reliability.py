"""The quick form of ``python -m benchmarks.reliability``: a few faults of every kind."""

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.reliability import __main__ as command
from benchmarks.reliability import crashes, disk, interruptions
from benchmarks.reliability.apart import CAN_FORK, apart
from benchmarks.reliability.child import Child
from benchmarks.reliability.counts import Counts, Fault, is_ours
from benchmarks.reliability.life import Life, resumed
from benchmarks.reliability.subjects import Kind, boosted, digest, model_of, step
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.boosters.adapter import Adapter

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not CAN_FORK, reason="parts run in forked processes")


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child({"resume": resumed})
    yield made
    made.close()


@pytest.mark.parametrize(
    "name", [name for name in command.PARTS if name not in ("lives", "interruptions")]
)
def test_nothing_is_lost_and_nothing_wrong(name: str) -> None:
    counts = command.part(name).run(True, 0)
    assert counts.injected == counts.survived + counts.refused
    assert counts.injected > 0
    assert counts.good, "\n".join([*counts.lost, *counts.wrong])


LIVES = """
from benchmarks.reliability.child import Child
from benchmarks.reliability.life import resumed
from benchmarks.reliability.stateful import live
child = Child({"resume": resumed})
print(live(child, %d, 12, 0, interrupts=%s, shrink=False))
child.close()
"""


@pytest.mark.parametrize(("lives", "interrupts"), [(15, False), (40, True)])
def test_lives(lives: int, interrupts: bool) -> None:
    """In a process of their own: what tests before have loaded has its own kernels and flags."""
    code = [sys.executable, "-W", "ignore", "-c", LIVES % (lives, interrupts)]
    run = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    assert int(run.stdout) > 50


def test_interruptions() -> None:
    counts = interruptions.run(True, 0)
    assert counts.good, "\n".join(counts.wrong)


# What looks for faults finds them


def test_a_life_whose_weights_are_touched_is_found(child: Child) -> None:
    life = Life(Kind(), child)
    life.step()
    life.check()
    target = next(n for n, layer in life.optimizer.targets.items() if layer not in life._drawn)
    with torch.no_grad():
        life.model.get_parameter(f"{target}.weight").add_(1e-3)
    with pytest.raises(AssertionError, match=f"{target}.weight changed within booster 0"):
        life.check()


def test_a_life_that_resumes_otherwise_is_found(child: Child) -> None:
    life = Life(Kind(), child)
    life.step()
    plain = life.optimizer.state_dict

    def lossy() -> dict[str, Any]:
        state = plain()
        life.optimizer.param_groups[0]["lr"] *= 2  # which is not in the state
        return state

    life.optimizer.state_dict = lossy  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="went on otherwise"):
        life.save()


def test_an_interruption_is_raised_at_its_line_and_at_no_other() -> None:
    model = model_of(Kind())
    optimizer = boosted(model, Kind())
    lines = interruptions.lines_of(lambda: step(model, optimizer, 0))
    assert len(lines) > 50
    assert interruptions.interrupted(lambda: step(model, optimizer, 1), 3)
    assert not interruptions.interrupted(lambda: step(model, optimizer, 2), 10**6)


@pytest.mark.parametrize("kind", [Kind("stack", "plain"), Kind("tied", "bias")], ids=str)
def test_a_target_is_hooked_once_wherever_that_is_interrupted(kind: Kind) -> None:
    code, first = inspect.getsourcelines(Adapter.hook)
    within = range(first, first + len(code))
    lines = [line.rpartition(":") for line in interruptions._lines(kind, "merge")]
    places = [at for at, (file, _, number) in enumerate(lines, 1)
              if file == inspect.getfile(Adapter) and int(number) in within]  # fmt: skip
    assert len(places) >= 7
    for at in places:
        fault = Fault("a target half hooked")
        interruptions.one(kind, "merge", at, fault)
        assert not fault.wrong


def test_an_interruption_that_harms_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a call that has changed the model when it is interrupted, and is not taken back."""
    plain = interruptions._act

    def act(call: str, model: nn.Module, optimizer: BoostedLowRankOptimizer) -> None:
        if sys.gettrace() is not None:  # the call to be interrupted, not the twin's
            with torch.no_grad():
                next(model.parameters()).add_(1.0)
        plain(call, model, optimizer)

    monkeypatch.setattr(interruptions, "_act", act)
    fault = Fault("half a merge")
    interruptions.one(Kind(), "merge", 1, fault)
    assert "neither the function of before nor of after" in fault.wrong


def test_a_run_that_goes_on_to_other_weights_is_found(tmp_path: Path) -> None:
    fault = Fault("a kill")
    crashes._compare((True, "other"), (True, "weights"), fault)
    assert "other weights" in fault.wrong
    crashes._compare(None, (True, "weights"), fault)
    assert "cannot go on" in fault.lost


def test_words_of_others_are_no_refusal() -> None:
    counts = Counts()
    for act in (lambda: {}["a"], lambda: model_of(Kind()).load_state_dict({})):
        with counts.fault("foreign") as fault:
            try:
                act()
            except Exception as error:
                assert not is_ours(error)
                fault.raised(error)
    with counts.fault("ours") as fault:
        try:
            boosted(model_of(Kind()), Kind(), r=0)
        except ValueError as error:
            fault.raised(error)
    with counts.fault("nobody's"):
        raise KeyError("a part that fails is no part that finds nothing")
    assert (counts.injected, counts.refused, len(counts.wrong)) == (4, 1, 3)


def test_silence_on_a_full_disk_is_found() -> None:
    said = disk._disturbed(lambda run: nullcontext(), "step")
    assert said.wrong


def test_what_fails_apart_is_said() -> None:
    def fails() -> None:
        raise KeyError("there")

    with pytest.raises(RuntimeError, match="KeyError: 'there'"):
        apart(fails)


@pytest.mark.parametrize("change", ["a bit", "a dtype", "a number", "a key"])
def test_digests_tell_states_apart(change: str) -> None:
    def state() -> dict[str, Any]:
        return {"a": [torch.ones(2), 1.0], "b": torch.zeros(0)}

    other = state()
    if change == "a bit":
        other["a"][0][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    elif change == "a dtype":
        other["b"] = other["b"].double()
    elif change == "a number":
        other["a"][1] = 1
    else:
        other["c"] = other.pop("b")
    assert digest(state()) == digest(state()) != digest(other)


def test_the_command_fails_where_something_was_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(quick: bool, seed: int) -> Counts:
        return Counts(injected=2, survived=1, lost=["a booster"] if seed else [])

    monkeypatch.setattr(command.part("drift"), "run", run)
    assert command.main(["drift", "--quick"]) == 0
    assert command.main(["drift", "--seed", "1", "--json", str(tmp_path / "a.json")]) == 1
    assert "lost: a booster" in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["seed"], written["all"]["lost"]) == (1, ["a booster"])
    with pytest.raises(SystemExit):
        command.main(["nothing"])
