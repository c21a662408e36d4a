"""Sends requests, some at a time, each until it has a reply of its own: a thread and a connection for each at once.

A refusal for load (429, 503) and a server that is not there are no reply: the request is sent again, when the server
said. Where nothing at all gets through for too long, the run stops, and what had no reply has no line.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable

from quire.app.batch.line import Result, Task, failed, replied
from quire.app.peer import Line, Lost, Peer, Reply, Unreachable, message_of

MOST_LOSSES = 3  # of connections with the same request: it may be the cause
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 30.0
MOST_RETRY_AFTER_S = 300.0
WAIT_S = 24 * 3600.0  # for a reply; how long it may take is the server's to say
_AGAIN = frozenset({429, 503})
_BROKEN = frozenset({502})  # a proxy's word for a connection that was lost
_NOBODY_PASSES = frozenset({401})


class Stop(Exception):
    """The run cannot go on; says why."""


class Sender:
    """`patience_s`: how long nothing at all may get through. `ended` tells why a server of our own is gone, or nothing.
    """

    def __init__(self, peer: Peer, concurrency: int, patience_s: float, ended: Callable[[], str] = lambda: "",
                 clock: Callable[[], float] = time.monotonic, wait: Callable[[float], object] | None = None) -> None:
        self._peer = peer
        self._patience_s = patience_s
        self._ended = ended
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._heard = clock()  # when a request last got its reply
        self._concurrency = concurrency
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
        for i in range(concurrency):
            threading.Thread(target=self._run, name=f"batch-{i}", daemon=True).start()

    def put(self, task: Task) -> None:
        self._tasks.put(task)

    def take(self, timeout_s: float) -> list[Result]:
        """All that is done since the last call; waits for the first. Raises Stop."""
        found: list[Result] = []
        try:
            item = self._results.get(timeout=timeout_s) if timeout_s else self._results.get_nowait()
            while True:
                if isinstance(item, Exception):
                    raise item
                found.append(item)
                item = self._results.get_nowait()
        except queue.Empty:
            if not found and (said := self._ended()):
                raise Stop(said) from None
            return found

    def close(self) -> None:
        """No request is sent any more. Those under way end with the process."""
        self._closed.set()
        for _ in range(self._concurrency):
            self._tasks.put(None)

    def _run(self) -> None:
        line = Line(self._peer, WAIT_S)
        while (task := self._tasks.get()) is not None and not self._closed.is_set():
            try:
                self._results.put(self._result(line, task))
            except Exception as error:
                self._results.put(error)
        line.close()

    def _result(self, line: Line, task: Task) -> Result:
        losses, delay_s = 0, FIRST_DELAY_S
        while True:
            try:
                reply = line.ask("POST", task.url, task.body)
            except Unreachable as error:
                said = f"{self._peer.address} does not answer: {error}"
            except Lost as error:
                losses += 1
                said = f"the connection was lost {losses} times while this request was answered: {error}"
            else:
                if reply.status in _NOBODY_PASSES:
                    raise Stop(f"{message_of(reply)} -> the key of VLLM_API_KEY is another")
                if reply.status not in _AGAIN | _BROKEN:
                    self._heard = self._clock()
                    request_id = reply.headers.get("x-request-id", "")
                    return replied(task, reply.status, request_id, reply.body)
                losses += reply.status in _BROKEN
                said = message_of(reply)
                delay_s = _retry_after_s(reply, delay_s)
            if losses >= MOST_LOSSES:
                return failed(task, "connection_lost", said)
            if self._clock() - self._heard > self._patience_s:
                raise Stop(f"nothing got through for {self._patience_s:g} s (--patience); last: {said}")
            self._wait(delay_s * random.uniform(1.0, 1.2))  # those who were refused together come apart
            delay_s = min(2 * delay_s, LAST_DELAY_S)


def _retry_after_s(reply: Reply, otherwise: float) -> float:
    try:
        return min(max(float(reply.headers.get("retry-after", "")), 0.1), MOST_RETRY_AFTER_S)
    except ValueError:  # none, or a date
        return otherwise
