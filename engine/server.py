"""The engine as a program: border 1 on a ZeroMQ ROUTER socket around an EngineCore, in one thread.

Between two steps it reads what workers sent; after each it sends every worker one frame. Idle, it sleeps in poll.
A worker that falls silent loses its samples; one that was never told of this engine is told.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import structlog
import zmq

from engine.messages import Abort, Delta, Deltas, Down, Heartbeat, Loading, Ready, Status, Submit, Up

if TYPE_CHECKING:  # the core brings torch, and the socket must answer workers before that is imported
    from engine.core import EngineCore

log = structlog.get_logger(__name__)

SILENCE_S = 20.0  # a worker sends a heartbeat a second; a blocked loop or a busy machine may hold up several
HOUSEKEEPING_S = 1.0
MAX_MESSAGES_PER_STEP = 256  # a flood of submissions must not keep running requests from their next step


class EngineServer:
    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # bounded by what may run and queue, not by frames
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(address)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(Down)
        self._core: EngineCore | None = None
        self._loading = Loading("starting", 0.0)
        self._heard: dict[bytes, float] = {}  # worker -> when it last said anything
        self._next_housekeeping = 0.0
        self._stopping = False

    def progress(self, phase: str, fraction: float) -> None:
        """Called while the model loads: passes the word on, answers workers meanwhile, and ends the load on `stop`."""
        changed = phase != self._loading.phase or fraction - self._loading.fraction >= 0.01
        self._loading = Loading(phase, fraction)
        self._receive(timeout_ms=0)
        if changed:
            self._broadcast(self._loading)
        if self._stopping:
            raise SystemExit(0)

    def stop(self) -> None:
        """Leave `run` after the step in hand. Safe to call from a signal handler."""
        self._stopping = True

    def run(self, core: EngineCore) -> None:
        """Serve until `stop`. An error in a step is the end of the engine: it is raised, never papered over."""
        self._core = core
        self._broadcast(Ready(core.info))
        while not self._stopping:
            self._receive(timeout_ms=0 if core.has_work else int(HOUSEKEEPING_S * 1000))
            busy = core.has_work
            if busy:
                self._deliver(core.step())
            if busy != core.has_work:
                self._next_housekeeping = 0.0  # gone idle: gauges must not show finished work for long
            if time.monotonic() >= self._next_housekeeping:
                self._housekeep()

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _receive(self, timeout_ms: int) -> None:
        if not self._socket.poll(timeout_ms):
            return
        for _ in range(MAX_MESSAGES_PER_STEP):
            try:
                worker, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:
                log.warning("message dropped", reason="not of two frames")
                continue
            try:
                message = self._decoder.decode(frame)
            except msgspec.DecodeError as error:
                log.warning("message dropped", reason=str(error))
                continue
            self._handle(worker, message)

    def _handle(self, worker: bytes, message: Down) -> None:
        if worker not in self._heard:
            self._send(worker, self._loading if self._core is None else Ready(self._core.info))
        self._heard[worker] = time.monotonic()
        core = self._core
        if core is None or isinstance(message, Heartbeat):
            return  # what is submitted while loading was meant for the engine before; Ready makes the worker resubmit
        if isinstance(message, Abort):
            core.abort(worker, message.ids)
        elif isinstance(message, Submit) and message.instance == core.info.instance:
            self._send(worker, core.submit(worker, message))

    def _deliver(self, produced: list[tuple[object, Delta]]) -> None:
        by_worker: dict[bytes, list[Delta]] = {}
        for worker, delta in produced:
            assert isinstance(worker, bytes)
            by_worker.setdefault(worker, []).append(delta)
        for worker, deltas in by_worker.items():
            self._send(worker, Deltas(deltas))

    def _housekeep(self) -> None:
        now = time.monotonic()
        self._next_housekeeping = now + HOUSEKEEPING_S
        assert self._core is not None
        for worker in [w for w, heard in self._heard.items() if now - heard > SILENCE_S]:
            del self._heard[worker]
            aborted = self._core.abort_owner(worker)
            log.warning("worker fell silent", aborted_samples=aborted, silence_s=SILENCE_S)
        status: Status = self._core.status()
        self._broadcast(status)

    def _broadcast(self, message: Up) -> None:
        for worker in self._heard:
            self._send(worker, message)

    def _send(self, worker: bytes, message: Up) -> None:
        # ROUTER drops what is addressed to a worker that is gone, which is what we want.
        self._socket.send_multipart([worker, self._encode(message)])
