"""A stateful property test: hypothesis lives lives and looks for one that breaks what must hold.

What it finds it shrinks to the shortest such life and prints as a program.
"""

from __future__ import annotations

import warnings
from typing import Any

from benchmarks.reliability.child import Child
from benchmarks.reliability.counts import Counts
from benchmarks.reliability.life import Life, resumed
from benchmarks.reliability.subjects import MODELS, SETTINGS, Kind

__all__ = ["machine", "run"]


def machine(child: Child, interrupts: bool, calls: list[int] | None = None) -> Any:
    """Return the state machine's class.

    Args:
        child: Resumes what is saved.
        interrupts: Whether calls are interrupted as well.
        calls: Counts what was done, in its one entry.
    """
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

    counted = [0] if calls is None else calls

    class Lives(RuleBasedStateMachine):
        life: Life

        @initialize(
            model=st.sampled_from(sorted(MODELS)), settings=st.sampled_from(sorted(SETTINGS))
        )
        def begin(self, model: str, settings: str) -> None:
            self.life = Life(Kind(model, settings), child)

        @rule(name=st.sampled_from(["step", "step", "skip", "accumulate", "merge", "evaluate", "schedule", "copy", "save", "finish"]))  # fmt: skip  # noqa: E501
        def do(self, name: str) -> None:
            counted[0] += 1
            getattr(self.life, name)()

        @rule(factor=st.sampled_from([0.5, 2.0]))
        def change_rate(self, factor: float) -> None:
            counted[0] += 1
            self.life.change_rate(factor)

        @precondition(lambda self: self.life.saved)
        @rule(which=st.integers(0, 9))
        def go_back(self, which: int) -> None:
            counted[0] += 1
            self.life.go_back(which)

        @precondition(lambda self: interrupts)
        @rule(line=st.integers(1, 900), call=st.sampled_from(["step", "merge"]))
        def interrupt(self, line: int, call: str) -> None:
            counted[0] += 1
            self.life.interrupt(line, call)

        @invariant()
        def holds(self) -> None:
            if hasattr(self, "life"):
                self.life.check()

    return Lives


def live(
    child: Child, examples: int, steps: int, seed: int, interrupts: bool, shrink: bool = True
) -> int:
    """Live so many lives of so many calls; return the calls.

    Args:
        child: Resumes what is saved.
        examples: How many lives.
        steps: How many calls a life has.
        seed: What they are drawn from.
        interrupts: Whether calls are interrupted as well.
        shrink: Whether to look for the shortest life in which something does not hold.

    Raises:
        AssertionError: If something did not hold, with the life in which it did not.
    """
    import hypothesis
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    calls = [0]
    told = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    seeded = hypothesis.seed(seed)(machine(child, interrupts, calls))
    run_state_machine_as_test(seeded, settings=told)
    return calls[0]


def run(quick: bool, seed: int) -> Counts:
    """Live many lives."""
    warnings.simplefilter("ignore")
    counts, child = Counts(), Child({"resume": resumed})
    try:
        with counts.fault("lives") as fault:
            try:
                done = live(child, *((20, 12) if quick else (500, 40)), seed, True, not quick)
            except AssertionError as error:
                fault.wrong = "".join([str(error), *getattr(error, "__notes__", [])])
            else:
                counts.injected += done - 1
                counts.survived += done - 1
    finally:
        child.close()
    return counts
