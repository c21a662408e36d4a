"""What is shown of a run, by a clock of the test's."""

from __future__ import annotations

import io

from quire.app.batch.line import Result, Usage
from quire.app.batch.progress import LOG_S, TERMINAL_S, Progress
from quire.app.duration import duration

RESULTS = [Result(b"", False, Usage(30, 6)), Result(b"", True)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_now_and_then_with_rates_and_the_time_left() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(1000, 10, 1, out, clock)
    for _ in range(60):
        clock.now += 1
        progress.add(RESULTS)
    assert len(out.getvalue().splitlines()) == 60 // LOG_S
    assert out.getvalue().splitlines()[0] == (
        "quire run-batch: 70 of 1,000 lines (7%), 31 failed, tokens/s: 30 in, 6 out, 7 min 45 s left")
    progress.end("done")
    assert out.getvalue().splitlines()[-1] == (
        "quire run-batch: done: 130 of 1,000 lines have a result, 61 failed; this run: 120 lines in 1 min 0 s, 1,800 "
        "tokens in, 360 out (6.0/s)")


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    clock, out = Clock(), Terminal()
    progress = Progress(4, 0, 0, out, clock)
    progress.note("weights 50%")
    clock.now = TERMINAL_S
    progress.add(RESULTS)
    clock.now = 2 * TERMINAL_S
    progress.add(RESULTS)
    shown = out.getvalue()
    assert "\n" not in shown and shown.startswith("\rserver: weights 50%\r2 of 4 lines (50%)")
    assert shown.rpartition("\r")[2].startswith("4 of 4 lines (100%), 2 failed")
    progress.end("done")
    assert out.getvalue().rpartition("\r")[2].startswith("quire run-batch: done: 4 of 4")


def test_durations_are_in_the_units_that_people_use() -> None:
    assert [duration(s) for s in (0.24, 59, 61, 3600, 7501)] == ["0.2 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 5 min"]
