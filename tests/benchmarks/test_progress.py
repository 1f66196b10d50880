"""Bars become lines where there is no terminal."""

import time
from io import StringIO

from benchmarks.measures.progress import Progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_now_and_then_and_a_terminal_a_bar() -> None:
    log, terminal, begun = StringIO(), Terminal(), time.monotonic()
    for _ in Progress(range(300), "run", file=log, seconds=0.05, leave=False):
        time.sleep(0.001)
    lines = log.getvalue().splitlines()
    assert 2 <= len(lines) <= 2 + (time.monotonic() - begun) / 0.05 and "\r" not in log.getvalue()
    assert all(line.startswith("run:") for line in lines)
    for _ in Progress(range(3), file=log, leave=False):
        pass
    assert log.getvalue().splitlines() == lines  # over at once
    for _ in Progress(range(3), file=terminal):
        pass
    assert "\r" in terminal.getvalue()
