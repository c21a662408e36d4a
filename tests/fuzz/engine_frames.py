"""A frame on the engine's socket, by way of the socket itself. The server stands as it does while a model loads: what
is in a message that it could read is not looked at, and is no matter of this target."""

from __future__ import annotations

import atexit
from functools import cache

import msgspec
import zmq

from quire.engine.messages import (
    Abort,
    Beams,
    Down,
    Heartbeat,
    KeyLimits,
    Media,
    SampleSpec,
    Sampling,
    Submit,
)
from quire.engine.server import EngineServer
from tests.fuzz import scratch


def seeds() -> list[bytes]:
    sampling = Sampling(temperature=0.5, stop_token_ids=(1, 2), bad_words=((3, 4),), grammar="{}", beams=Beams(2, 4))
    messages: list[Down] = [
        Heartbeat(1), Abort([1, 2**40]), Submit("i", "r", [1], Sampling(), [SampleSpec(1, 0)]),
        Submit("i", "r", [1, 2], sampling, [SampleSpec(1, 7, [3])], 1, KeyLimits("k", 1, 2, 3, 0.5), "salt", 1.5, True,
               True, [Media(b"d" * 32, 0, 4, (1, 4, 4), "/dev/shm/none")])]
    return [msgspec.msgpack.encode(message) for message in messages]


def target(data: bytes) -> None:
    server, worker = _connected()
    worker.send(data)
    assert worker.poll(0) is not None
    server._receive(timeout_ms=1000)
    while worker.poll(0):
        worker.recv()


@cache
def _connected() -> tuple[EngineServer, zmq.Socket[bytes]]:
    address = f"ipc://{scratch.folder()}/engine.sock"
    server = EngineServer(address)
    worker = zmq.Context.instance().socket(zmq.DEALER)
    worker.setsockopt(zmq.LINGER, 0)
    worker.connect(address)
    atexit.register(server.close)
    atexit.register(worker.close)
    return server, worker
