"""How far a run is: a line that is written over on a terminal, one every so often elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Progress"]


class Progress(TrainerCallback):
    """Says step, loss and time left on stderr, and every evaluation.

    Args:
        stream: Where to, if not to stderr.
        seconds: Between two lines where the stream is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, seconds: float = 15.0) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.pause = 0.2 if self.terminal else seconds
        self._began = self._said = time.monotonic()
        self._first = 0
        self._loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        self._began = self._said = time.monotonic()
        self._first = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if state.is_world_process_zero and now - self._said >= self.pause:
            self._said = now
            self._write(self._line(state, now), over=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Remember the loss; say what was evaluated."""
        logs = logs or {}
        if "loss" in logs:
            self._loss = f", loss {float(logs['loss']):.4g}"
        scores = {
            name.removeprefix("eval_"): value
            for name, value in logs.items()
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
        }
        if scores and state.is_world_process_zero:
            said = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self._write(f"step {state.global_step}/{state.max_steps}, dev: {said}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say the last step."""
        if state.is_world_process_zero:
            self._write(self._line(state, time.monotonic()))

    def _line(self, state: TrainerState, now: float) -> str:
        done, spent = state.global_step - self._first, now - self._began
        left = state.max_steps - state.global_step
        rest = f", about {_said(spent * left / done)} left" if done and left else ""
        share = f"{100 * state.global_step / max(1, state.max_steps):.0f} %"
        place = f"step {state.global_step}/{state.max_steps} ({share})"
        return f"{place}{self._loss}, {_said(spent)}{rest}"

    def _write(self, line: str, over: bool = False) -> None:
        if self.terminal:
            self.stream.write(f"\r\x1b[K{line}" + ("" if over else "\n"))
        else:
            self.stream.write(f"{line}\n")
        self.stream.flush()


def _said(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
