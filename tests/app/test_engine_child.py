"""The engine as its parent sees it, played by small programs in its place."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from quire.app import engine_child
from quire.app.engine_child import DEATH_S, DOUBT_S, EngineChild, stop_all
from quire.engine.heartbeat import Heartbeat
from tests.e2e.server import until

PROGRAM = """
import os, sys, time
pipe = int(sys.argv[sys.argv.index("--beat-fd") + 1])
{}
time.sleep(60)
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EngineChild]]:
    popen = subprocess.Popen
    children: list[EngineChild] = []

    def make(body: str, stall_timeout_s: float = 60.0) -> EngineChild:
        def instead(command: list[str], **options: Any) -> Any:
            return popen([sys.executable, "-c", PROGRAM.format(body), *command[3:]], **options)

        monkeypatch.setattr(engine_child.subprocess, "Popen", instead)
        read_end, write_end = os.pipe()
        children.append(EngineChild([], dict(os.environ), read_end, stall_timeout_s, {}))
        os.close(read_end)
        os.close(write_end)
        return children[-1]

    yield make
    stop_all(children, 0)
    for child in children:
        child.close()


def beats_until(child: EngineChild, condition: Callable[[], object]) -> None:
    def look() -> object:
        child.take_beats(time.monotonic())
        return condition()

    until(look, 20)


def test_loading_has_no_limit_and_serving_has(start: Callable[..., EngineChild]) -> None:
    child = start("os.write(pipe, b'l')")
    until(lambda: child.take_beats(time.monotonic()), 20)
    assert child.end_if_hung(time.monotonic() + 1e6) is None
    assert child.silent_s(time.monotonic() + 1e6) == 0
    assert not child.hung


def test_a_silent_engine_is_doubted_then_aborted_then_killed(start: Callable[..., EngineChild]) -> None:
    child = start("import signal; signal.signal(signal.SIGABRT, lambda *_: os.write(pipe, b'a')); os.write(pipe, b's')",
                  5.0)
    beats_until(child, lambda: child.serving_since)
    now = time.monotonic() + 6
    doubted_until = child.end_if_hung(now)
    assert doubted_until == now + DOUBT_S
    assert not child.hung
    abort_at = child.end_if_hung(now + DOUBT_S)
    assert child.hung
    assert abort_at is not None
    assert child.end_if_hung(abort_at - 0.01) == abort_at
    assert not select.select(child.pipes, [], [], 0.2)[0], "the log has the word of it first"
    kill_at = child.end_if_hung(abort_at)
    assert kill_at is not None
    assert select.select(child.pipes, [], [], 20)[0]
    assert child.end_if_hung(kill_at - 0.1) == kill_at
    assert child.ended() is None
    late = kill_at + 2 * DEATH_S  # as a launcher is that was held up itself
    child.end_if_hung(late)
    assert not child.immortal
    until(lambda: child.ended() is not None)
    assert child.ended() == -signal.SIGKILL
    assert not child.immortal
    child.end_if_hung(late + DEATH_S)
    assert child.immortal


def test_a_beat_after_a_pause_ends_the_doubt(start: Callable[..., EngineChild]) -> None:
    child = start("while True: os.write(pipe, b's'); time.sleep(0.05)", 5.0)
    beats_until(child, lambda: child.serving_since)
    now = time.monotonic()
    child.end_if_hung(now + 6)  # as if everything had stood still for so long
    assert select.select(child.pipes, [], [], 20)[0]
    child.take_beats(now + 6.2)
    assert child.end_if_hung(now + 6 + DOUBT_S) == pytest.approx(now + 6.2 + 5)
    assert not child.hung


def test_the_end_of_its_pipe_is_no_beat_and_nothing_to_wait_on(start: Callable[..., EngineChild]) -> None:
    child = start("os.write(pipe, b's'); os.close(pipe)")
    beats_until(child, lambda: not child.pipes)
    assert child.silent_s(time.monotonic() + 10) > 9


def test_many_that_will_not_end_take_no_longer_than_one(start: Callable[..., EngineChild],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    children = [start("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(pipe, b's')")
                for _ in range(6)]
    for child in children:
        beats_until(child, lambda child=child: child.serving_since)
    now = 0.0
    killed = []
    signal_group = EngineChild._signal_group

    def kills(child: EngineChild, number: signal.Signals) -> None:
        killed.append(child)
        signal_group(child, number)

    def wait(child: EngineChild, really: Callable[[float], int], timeout: float) -> int:
        nonlocal now
        if child in killed:
            return really(20)
        assert child._process.poll() is None
        now += timeout
        raise subprocess.TimeoutExpired("engine", timeout)

    monkeypatch.setattr(engine_child, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    monkeypatch.setattr(EngineChild, "_signal_group", kills)
    for child in children:
        monkeypatch.setattr(child._process, "wait", partial(wait, child, child._process.wait))
    stop_all(children, 5.0)
    assert now == 5, "one after the other would be 30"
    assert [child.ended() for child in children] == [-signal.SIGKILL] * 6


def test_beats_never_block_nor_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    beat = Heartbeat(write_end)
    now = 0.0
    monkeypatch.setattr("quire.engine.heartbeat.time.monotonic", lambda: now)
    beat.loading()
    beat.loading()
    beat.serving()
    beat.serving()
    assert os.read(read_end, 100) == b"ls"
    for _ in range(70000):  # more than the pipe holds
        now += 1
        beat.serving()
    os.close(read_end)
    now += 1
    beat.serving()
    os.close(write_end)
    Heartbeat(None).serving()
