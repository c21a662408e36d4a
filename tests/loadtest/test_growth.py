"""The growth of processes: of a real one that leaks when it is told to, and its child; time is the test's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from quire.engine.errors import ConfigError
from quire.loadtest import growth
from quire.loadtest.growth import Held, Look, grown, look, slope, told, watch

LEAKY = """
import subprocess, sys, threading
program = "import sys; print(flush=True); sys.stdin.read()"
child = subprocess.Popen([sys.executable, "-c", program, "a.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
kept, go_on = [], threading.Event()
print("ready", flush=True)
for line in sys.stdin:
    kept.append((open("/dev/null"), bytearray(b"x") * (1 << 20)))
    threading.Thread(target=go_on.wait, daemon=True).start()
    print("leaked", flush=True)
child.stdin.close()
child.wait()
"""


@pytest.fixture
def leaky() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", LEAKY, "a.parent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def looked(pid: int, between: Callable[[], None]) -> list[Look]:
    """Five times, ten seconds apart, and what is done in between; the first two do not count."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        between()

    return watch(pid, seconds=60.0, every=10.0, warm_up=20.0, clock=lambda: now, sleep=sleep)


def test_what_leaks_is_found_by_kind_and_what_does_not_is_not(leaky: subprocess.Popen[str]) -> None:
    stdin, stdout = leaky.stdin, leaky.stdout
    assert stdin is not None and stdout is not None

    def leak() -> None:
        print("leak", file=stdin, flush=True)
        stdout.readline()

    still = looked(leaky.pid, lambda: None)
    assert [one.at for one in still] == [20, 30, 40, 50, 60]
    assert slope(still, lambda one: one.whole.files) == slope(still, lambda one: one.whole.threads) == 0
    looks = looked(leaky.pid, leak)
    assert set(looks[0].held) == {"a.parent", "a.child"} and looks[0].whole.processes == 2
    assert slope(looks, lambda one: one.held["a.parent"].files) == pytest.approx(360)
    assert slope(looks, lambda one: one.held["a.parent"].threads) == pytest.approx(360)
    assert 300 < slope(looks, lambda one: one.held["a.parent"].mib) < 600
    assert slope(looks, lambda one: one.held["a.child"].files) == 0
    limits = {"mib": 20.0, "files": 2.0, "threads": 1000.0}
    assert grown(still, {"files": 2.0, "threads": 2.0}) == []
    said = grown(looks, limits)
    assert [line.split()[0] for line in said] == ["mib", "files"] and "(--most-files)" in said[1]
    lines = told(looks)
    assert len(lines) == 4 and "+360.0/h" in lines[-1] and lines[2].startswith("a.parent")


def test_a_slope_is_that_of_a_line_and_not_moved_by_where_it_begins() -> None:
    looks = [Look(100.0 + 5 * i, {"x": Held(mib=7 + 0.25 * i)}) for i in range(9)]
    assert slope(looks, lambda one: one.whole.mib) == pytest.approx(180)
    assert slope(looks[:1], lambda one: one.whole.mib) == 0


def test_no_process_is_said_to_be_none() -> None:
    with pytest.raises(ConfigError, match="--pid: there is no process 99999999"):
        look(99999999, 0.0)


def test_too_few_looks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth.time, "sleep", lambda _: None)
    with pytest.raises(ConfigError, match="0 looks count; 3 are needed"):
        growth.main(["--pid", str(os.getpid()), "--seconds", "0.001", "--warm-up", "5"])
