"""A flood of submissions does not keep running requests from their next step, however long the prompts are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import zmq

from quire.engine.messages import Accepted, SampleSpec, Sampling, Submit
from quire.engine.server import RECEIVE_S, EngineServer
from tests.app.fake_engine import INFO


class Core:
    """Takes as long as it is told for a submission, by a clock of its own."""

    info = INFO
    has_work = True

    def __init__(self, takes_s: float) -> None:
        self.now = 0.0
        self.taken: list[int] = []
        self._takes_s = takes_s

    def submit(self, owner: object, message: Submit) -> Accepted:
        self.now += self._takes_s
        self.taken.append(message.samples[0].id)
        return Accepted([message.samples[0].id])


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/e.sock"


@pytest.fixture
def worker(address: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        yield socket


@pytest.mark.parametrize("takes_s", [RECEIVE_S * 3, RECEIVE_S / 10, 0.0])
def test_submissions_between_two_steps_are_weighed_by_their_time(
        address: str, worker: zmq.Socket[bytes], takes_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EngineServer(address)
    core = Core(takes_s)
    server._core = cast(Any, core)
    monkeypatch.setattr(time, "perf_counter", lambda: core.now)
    worker.connect(address)
    for id in range(30):
        worker.send(msgspec.msgpack.encode(Submit("i", "r", [1], Sampling(), [SampleSpec(id, 0)])))
    try:
        while len(core.taken) < 30:
            before = core.now, len(core.taken)
            server._receive(timeout_ms=1000)
            assert len(core.taken) > before[1], "one is taken at least"
            assert core.now - before[0] <= RECEIVE_S + 2 * takes_s
        assert core.taken == list(range(30))
    finally:
        server.close()
