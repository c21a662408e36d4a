"""Clients that come again exactly when they were told, against a queue that is full: the engine's door and a worker's,
on a clock of their own."""

from __future__ import annotations

import heapq
import random

from quire.app.door import Door
from quire.engine.admission import Admission
from quire.engine.errors import OverloadedError
from quire.engine.messages import KeyLimits, Rejected, SampleSpec, Sampling, Submit

RUNNING, QUEUED, TAKES_S = 16, 32, 2.0  # 8 requests a second


class Server:
    """One engine and its workers: samples run for TAKES_S each, RUNNING at once."""

    def __init__(self, num_workers: int) -> None:
        self.now_s = 1000.0
        self._admission = Admission(QUEUED, None, lambda: int(self.now_s * 1e9))
        draws = random.Random(1)
        self._doors = [Door(num_workers, lambda: self.now_s, draws.uniform) for _ in range(num_workers)]
        self._ends: list[float] = []
        self._waiting = 0

    def advance(self, now_s: float) -> None:
        while self._ends and self._ends[0] <= now_s:
            self.now_s = heapq.heappop(self._ends)
            self._take_up()
        self.now_s = now_s

    def ask(self, client: int) -> float:
        """Seconds after which to come again; 0: it is served."""
        door = self._doors[client % len(self._doors)]
        try:
            door.check("")
        except OverloadedError as error:
            return error.retry_after_s
        answer = self._admission.admit(
            Submit("engine", "request", [1] * 100, Sampling(), [SampleSpec(0, 0)], key=KeyLimits()), self._waiting, 0)
        if isinstance(answer, Rejected):
            return door.refused("", OverloadedError(
                answer.message, answer.retry_after_s, closed_s=answer.closed_s,
                spacing_s=answer.spacing_s)).retry_after_s
        self._waiting += 1
        self._take_up()
        return 0.0

    def _take_up(self) -> None:
        while self._waiting and len(self._ends) < RUNNING:
            self._waiting -= 1
            self._admission.departed(1, 100)
            heapq.heappush(self._ends, self.now_s + TAKES_S)


def attempts_until_served(num_clients: int, num_workers: int) -> tuple[list[int], float]:
    """Of each client, and when the last one was let in."""
    server, draws = Server(num_workers), random.Random(2)
    due = [(1000.0 + draws.random(), client) for client in range(num_clients)]
    heapq.heapify(due)
    attempts = [0] * num_clients
    while due:
        at, client = heapq.heappop(due)
        server.advance(at)
        attempts[client] += 1
        if after_s := server.ask(client):
            heapq.heappush(due, (at + after_s, client))
    return attempts, server.now_s - 1000.0


def test_all_of_600_obedient_clients_are_served_within_a_few_tries_and_hardly_later_than_can_be() -> None:
    for num_workers in (1, 4):
        attempts, last_s = attempts_until_served(600, num_workers)
        best_s = (600 - RUNNING - QUEUED) * TAKES_S / RUNNING
        print(num_workers, max(attempts), sum(attempts) / 600, last_s, best_s)
        assert max(attempts) <= 5, f"{num_workers} workers"
        assert last_s < 1.5 * best_s


def test_who_is_refused_alone_is_told_no_more_than_the_queue_needs() -> None:
    server = Server(1)
    for client in range(RUNNING + QUEUED):
        assert not server.ask(client)
    server.advance(1004.0)
    for client in range(RUNNING * 2):
        assert not server.ask(client)
    assert server.ask(0) == 1.0
