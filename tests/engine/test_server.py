"""The engine's loop around a core that does as a test says: who hears what, and when."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from structlog.testing import capture_logs

from quire.engine import server as module
from quire.engine.messages import (
    Abort,
    Accepted,
    Down,
    EngineInfo,
    Heartbeat,
    Ready,
    SampleSpec,
    Sampling,
    Status,
    Submit,
    Up,
)
from quire.engine.server import SILENCE_S, EngineServer

STATUS = Status(num_running=1, num_waiting=0, kv_usage=0, prefix_queries=0, prefix_hits=0, num_preemptions=0,
                num_steps=0, prompt_tokens=0, generation_tokens=0, last_step_age_s=0)


class Clock:
    """Time in the server, which goes on only where a test says so."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Core:
    """One step, which does what it is told and is the last."""

    info = EngineInfo(model="m", dtype="float32", device="cpu", max_model_len=100, vocab_size=1000, num_blocks=8,
                      block_size=16, kv_tokens=128, max_num_seqs=4, max_num_batched_tokens=64, max_logprobs=20,
                      instance="1")

    def __init__(self) -> None:
        self.has_work = True
        self.moved_at = 0.0
        self.gone: list[object] = []
        self.submitted: list[str] = []
        self.aborted: list[list[int]] = []
        self.in_step: Callable[[], None] = lambda: None

    def step(self, started: object) -> list[Any]:
        self.in_step()
        self.has_work = False
        return []

    def expire(self) -> list[Any]:
        return []

    def check(self) -> None:
        pass

    def is_moving(self, since: float) -> bool:
        return not self.has_work or self.moved_at >= since

    def submit(self, owner: object, message: Submit) -> Accepted:
        self.submitted.append(message.request_id)
        return Accepted([sample.id for sample in message.samples])

    def abort(self, owner: object, ids: list[int]) -> None:
        self.aborted.append(ids)

    def abort_owner(self, owner: object) -> int:
        self.gone.append(owner)
        return 0

    def status(self) -> Status:
        return STATUS


class Worker:
    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)

    def say(self, message: Down) -> None:
        self.send(msgspec.msgpack.encode(message))

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def heard(self) -> list[Up]:
        found = []
        while self._socket.poll(200):
            found.append(msgspec.msgpack.decode(self._socket.recv(), type=Up))
        return found

    def close(self) -> None:
        self._context.destroy(linger=0)


class Engine:
    def __init__(self, address: str) -> None:
        self.beats: list[float] = []
        self.clock = Clock()
        self.core = Core()
        self.server = EngineServer(address, lambda: self.beats.append(self.clock.now))
        self.worker = Worker(address)

    def run(self, in_step: Callable[[], None]) -> None:
        """Until the step is over."""
        def do() -> None:
            in_step()
            self.server.stop()

        self.core.in_step = do
        self.server.run(self.core)  # type: ignore[arg-type]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = Engine(f"ipc://{tmp_path}/engine.sock")
    monkeypatch.setattr(module, "time", engine.clock)
    yield engine
    engine.worker.close()
    engine.server.close()


def test_a_step_that_gets_on_beats_and_tells_workers_once_a_second_however_long_it_takes(engine: Engine) -> None:
    engine.worker.say(Heartbeat(os.getpid()))
    assert engine.server._socket.poll(10_000)
    engine.beats.clear()

    def long() -> None:
        engine.beats.clear()
        for _ in range(400):  # layers of a quarter of a second each
            engine.clock.now += 0.25
            engine.server.step_advances()

    engine.run(long)
    assert len(engine.beats) >= 100
    assert max(b - a for a, b in zip(engine.beats, engine.beats[1:])) <= 1.25
    heard = engine.worker.heard()
    assert isinstance(heard[0], Ready)
    assert sum(isinstance(message, Status) for message in heard) >= 100


def test_a_step_that_does_not_get_on_is_silent(engine: Engine) -> None:
    during: list[int] = []

    def stuck() -> None:
        before = len(engine.beats)
        engine.clock.now += 100
        during.append(len(engine.beats) - before)

    engine.run(stuck)
    assert during == [0]


def test_nothing_beats_as_serving_before_the_model_is_loaded(engine: Engine) -> None:
    engine.server.step_advances()
    assert not engine.beats


@pytest.mark.parametrize("spoke", [True, False])
def test_a_worker_that_spoke_during_a_long_step_was_not_silent(engine: Engine, monkeypatch: pytest.MonkeyPatch,
                                                               spoke: bool) -> None:
    """Where its process cannot be watched, silence is all that tells of its end."""
    engine.worker.say(Heartbeat(0))
    assert engine.server._socket.poll(10_000)

    def long() -> None:
        engine.clock.now += SILENCE_S + 5
        if spoke:
            engine.worker.say(Heartbeat(0))
            assert engine.server._socket.poll(10_000)

    engine.run(long)
    assert bool(engine.core.gone) is not spoke


def submission(name: str, instance: str = Core.info.instance) -> Submit:
    return Submit(instance, name, [1, 2], Sampling(), [SampleSpec(7, 0)])


def test_what_cannot_be_read_is_dropped_and_what_follows_it_is_served(engine: Engine) -> None:
    """Nothing that a worker sends, of whatever version it is, ends the engine."""
    frames = [(b"",), (b"\xc1",), (b"\x91\xa7unknown",), (b"\x92\xa5abort\xa3abc",), (b"two", b"frames"),
              (msgspec.msgpack.encode(["submit", "1", "cut"]),), (b"\x92\xa6submit\xa1\xff",),
              (b"\x93\xa5abort\x90" + b"\x91" * 5000,)]
    with capture_logs() as logs:
        for each in frames:
            engine.worker.send(*each)
        engine.worker.say(Heartbeat(2**64 - 1))  # can be read, but no process has that number
        engine.worker.say(submission("readable"))
        engine.server.progress("loading", 0.5)  # says nothing to workers that it does not know, and reads
        engine.server._core = engine.core  # type: ignore[assignment]
        until_read(engine, lambda: engine.core.submitted or engine.worker.heard())
        engine.worker.say(submission("later"))
        until_read(engine, lambda: "later" in engine.core.submitted)
    assert [entry["event"] for entry in logs].count("message dropped") == len(frames)


def until_read(engine: Engine, condition: Callable[[], object]) -> None:
    for _ in range(200):
        engine.server._receive(timeout_ms=50)
        if condition():
            return
    pytest.fail("never read")


def test_only_what_was_meant_for_this_engine_is_taken(engine: Engine) -> None:
    """Another one had it in its queue, or was to abort it; its worker resubmits once it hears of this one."""
    engine.server._core = engine.core  # type: ignore[assignment]
    engine.worker.say(submission("of another", instance="another"))
    engine.worker.say(Abort([1, 2, 99]))
    engine.worker.say(submission("own"))
    until_read(engine, lambda: engine.core.submitted)
    assert engine.core.submitted == ["own"]
    assert engine.core.aborted == [[1, 2, 99]]
    heard = engine.worker.heard()
    assert [type(message) for message in heard] == [Ready, Accepted]


def test_a_worker_whose_process_ended_is_gone_however_lately_it_spoke(engine: Engine) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    engine.worker.say(Heartbeat(process.pid))
    engine.server._core = engine.core  # type: ignore[assignment]
    until_read(engine, lambda: engine.server._workers)
    engine.server._housekeep(engine.core)  # type: ignore[arg-type]
    assert not engine.core.gone
    process.communicate(b"\n")
    engine.server._housekeep(engine.core)  # type: ignore[arg-type]
    assert len(engine.core.gone) == 1
    assert not engine.server._workers
