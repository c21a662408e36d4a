"""The engine as a program: border 1 on a ZeroMQ ROUTER socket around an EngineCore, in one thread.

Between two steps it reads what workers sent; after each it sends every worker one frame. Idle, it sleeps in poll.
A worker that ends or falls silent loses its samples; one that was never told of this engine is told.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec
import structlog
import zmq

from quire.engine.messages import (
    UNREADABLE,
    Abort,
    Delta,
    Deltas,
    Down,
    Heartbeat,
    Loading,
    Part,
    Ready,
    Started,
    Submit,
    Up,
)

if TYPE_CHECKING:  # the core brings torch, and the socket must answer workers before that is imported
    from quire.engine.core import EngineCore

log = structlog.get_logger(__name__)

# A worker sends a heartbeat a second, and a blocked loop may hold up several: silence counts only where we cannot see
# whether its process lives.
SILENCE_S = 20.0
HOUSEKEEPING_S = 1.0
EXPIRY_S = 0.25  # how late a request may hear that its time in the queue is over
LEAVING_S = 0.01  # most that a step waits for the word of its start to have left this process; 0.07 ms as a rule
# A flood of submissions must not keep running requests from their next step: of 8,000 ids, 256 take 84 ms.
MAX_MESSAGES_PER_STEP = 256
RECEIVE_S = 0.004  # and the message in hand


class _Worker:
    __slots__ = ("_pid_fd", "heard")

    def __init__(self) -> None:
        self.heard = time.monotonic()
        self._pid_fd: int | None = None  # readable once the process has ended, whatever gets its number later

    def watch(self, pid: int) -> None:
        if self._pid_fd is None and pid:
            # An old kernel, a Python built without it, a sandbox; a number that no process has.
            with contextlib.suppress(OSError, AttributeError, OverflowError):
                self._pid_fd = os.pidfd_open(pid)

    def gone(self, now: float) -> bool:
        if self._pid_fd is None:
            return now - self.heard > SILENCE_S
        poll = select.poll()
        poll.register(self._pid_fd, select.POLLIN)
        return bool(poll.poll(0))

    def forget(self) -> None:
        if self._pid_fd is not None:
            os.close(self._pid_fd)


class EngineServer:
    def __init__(self, address: str, beat: Callable[[], None] = lambda: None, *, after_kill: bool = False) -> None:
        """`beat` is called about once a second from `run`, where a step was made or gets on, or there is nothing to do.

        `after_kill`: as in messages.Ready.
        """
        self._beat = beat
        self._after_kill = after_kill
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # bounded by what may run and queue, not by frames
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.copy_threshold = 0  # so that even a small message can be watched leaving
        with _private_files():
            self._socket.bind(address)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(Down)
        self._core: EngineCore | None = None
        self._loading = Loading("starting", 0.0)
        self._workers: dict[bytes, _Worker] = {}
        self._last_beat = 0.0
        self._next_housekeeping = 0.0
        self._next_expiry = 0.0
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

    def step_advances(self) -> None:
        """Called from within a step, as often as it gets on: neither the parent nor workers are to take one that is
        merely long for a hang."""
        now = time.monotonic()
        if self._core is not None and now >= self._last_beat + HOUSEKEEPING_S:
            self._last_beat = now
            self._beat()
            self._broadcast(self._core.status())

    def stop(self) -> None:
        """Leave `run` after the step in hand. Safe to call from a signal handler."""
        self._stopping = True

    def run(self, core: EngineCore) -> None:
        """Serve until `stop`. An error in a step is the end of the engine: it is raised, never papered over."""
        self._core = core
        if not core.info.generates:
            log.info("the model has no head", makes="embeddings alone")
        self._broadcast(Ready(core.info, self._after_kill))
        while not self._stopping:
            self._receive(timeout_ms=0 if core.has_work else int(HOUSEKEEPING_S * 1000))
            busy = core.has_work
            if busy:
                self._deliver(core.step(self._tell_started))
            if busy != core.has_work:
                self._next_housekeeping = 0.0  # gone idle: gauges must not show finished work for long
            now = time.monotonic()
            if now >= self._next_expiry:
                self._next_expiry = now + EXPIRY_S
                for worker, refusal in core.expire():
                    self._send(_identity(worker), refusal)
            if now >= self._next_housekeeping:
                self._housekeep(core)

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _receive(self, timeout_ms: int) -> None:
        if not self._socket.poll(timeout_ms):
            return
        until = time.perf_counter() + RECEIVE_S
        for _ in range(MAX_MESSAGES_PER_STEP):
            if time.perf_counter() > until:
                return
            try:
                identity, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:
                log.warning("message dropped", reason="not of two frames")
                continue
            try:
                message = self._decoder.decode(frame)
            except UNREADABLE as error:
                log.warning("message dropped", reason=str(error))
                continue
            self._handle(identity, message)

    def _handle(self, identity: bytes, message: Down) -> None:
        core = self._core
        worker = self._workers.get(identity)
        if worker is None:
            worker = self._workers[identity] = _Worker()
            self._send(identity, self._loading if core is None else Ready(core.info, self._after_kill))
        worker.heard = time.monotonic()
        if isinstance(message, Heartbeat):
            worker.watch(message.pid)
        if core is None:
            return  # what is submitted while loading was meant for the engine before; Ready makes the worker resubmit
        if isinstance(message, Abort):
            core.abort(identity, message.ids)
        elif isinstance(message, Submit) and message.instance == core.info.instance:
            self._send(identity, core.submit(identity, message))

    def _tell_started(self, samples: Iterable[tuple[object, int]], parts: Iterable[tuple[object, Part]]) -> None:
        by_worker: dict[bytes, Started] = {}
        for worker, part in parts:
            by_worker.setdefault(_identity(worker), Started([], [])).parts.append(part)
        for worker, id in samples:
            by_worker[_identity(worker)].ids.append(id)
        for identity, started in by_worker.items():
            # The step may be the end of this process, and who started it must be known to those who survive.
            tracker = self._socket.send_multipart([identity, self._encode(started)], copy=False, track=True)
            assert tracker is not None
            with contextlib.suppress(zmq.NotDone):
                tracker.wait(LEAVING_S)

    def _deliver(self, produced: Iterable[tuple[object, Delta]]) -> None:
        by_worker: dict[bytes, list[Delta]] = {}
        for worker, delta in produced:
            by_worker.setdefault(_identity(worker), []).append(delta)
        for identity, deltas in by_worker.items():
            self._send(identity, Deltas(deltas))

    def _housekeep(self, core: EngineCore) -> None:
        now = time.monotonic()
        self._next_housekeeping = now + HOUSEKEEPING_S
        core.check()
        if core.is_moving(since=self._last_beat):
            self._last_beat = now
            self._beat()
        self._receive(timeout_ms=0)  # what workers said during a long step: they were not silent
        now = time.monotonic()
        for identity in [identity for identity, worker in self._workers.items() if worker.gone(now)]:
            worker = self._workers.pop(identity)
            worker.forget()
            aborted = core.abort_owner(identity)
            tell = log.warning if aborted else log.info  # none: it ended in peace, as at every stop
            tell("worker is gone", aborted_samples=aborted, silent_s=round(now - worker.heard, 1))
        self._broadcast(core.status())

    def _broadcast(self, message: Up) -> None:
        for identity in self._workers:
            self._send(identity, message)

    def _send(self, identity: bytes, message: Up) -> None:
        # ROUTER drops what is addressed to a worker that is gone, which is what we want.
        self._socket.send_multipart([identity, self._encode(message)])


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """A socket that is made meanwhile can be connected to by this user alone: whoever may is served, without a key."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _identity(owner: object) -> bytes:
    """The worker behind a sample's owner, as this server gave it to the core."""
    assert isinstance(owner, bytes)
    return owner
