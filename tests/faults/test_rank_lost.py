"""An engine of two ranks loses one: it ends at once and says why, comes back whole, and no request fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, alive, serving, until
from tests.e2e.test_lifecycle import Stream

NUM_TOKENS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--pipeline-parallel-size", "2", "--engine-stall-timeout", "4") as server:
        yield server


def ranks_of(server: Server) -> list[int]:
    """Their processes, in order."""
    (engine,) = server.pids()["engine"]
    found = []
    for task in Path(f"/proc/{engine}/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return sorted(pid for pid in found if b"quire.engine.execution.rank" in Path(f"/proc/{pid}/cmdline").read_bytes())


def lose(server: Server, lost: int, number: signal.Signals) -> None:
    """Send it the signal while streams run; they end as if nothing had happened, and nothing of the engine is left."""
    undisturbed = Stream(server, NUM_TOKENS).result()
    streams = [Stream(server, NUM_TOKENS) for _ in range(3)]
    assert all(stream.begun.wait(60) for stream in streams)
    before = [*server.pids()["engine"], *ranks_of(server)]
    num_ready = len(server.events("ready"))
    os.kill(ranks_of(server)[lost], number)
    until(lambda: not any(alive(pid) for pid in before), 15)
    assert [stream.result() for stream in streams] == [undisturbed] * 3
    assert all(stream.finish == "length" for stream in streams)
    until(lambda: len(server.events("ready")) == num_ready + 1, 60)


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_its_engine_and_requests_go_on(server: Server, lost: int) -> None:
    num_broken = len(server.events("engine broke"))
    lose(server, lost, signal.SIGKILL)
    broken = server.events("engine broke")[num_broken:]
    assert [f"rank {lost} (" in event["reason"] and "SIGKILL" in event["reason"] for event in broken] == [True]


@pytest.mark.slow
def test_a_rank_killed_while_its_engine_is_idle_is_replaced_before_a_request_needs_it(server: Server) -> None:
    num_broken, num_ready = len(server.events("engine broke")), len(server.events("ready"))
    before = [*server.pids()["engine"], *ranks_of(server)]
    os.kill(ranks_of(server)[1], signal.SIGKILL)
    until(lambda: server.get("/readyz").status_code == 503, 5)
    until(lambda: not any(alive(pid) for pid in before), 15)
    broken = server.events("engine broke")[num_broken:]
    assert ["rank 1 (" in event["reason"] and "SIGKILL" in event["reason"] for event in broken] == [True]
    until(lambda: len(server.events("ready")) == num_ready + 1, 60)
    stream = Stream(server, NUM_TOKENS)
    assert stream.result() and stream.finish == "length"


@pytest.mark.slow
def test_a_rank_that_hangs_is_found_out_by_the_heartbeat(server: Server) -> None:
    num_hung = len(server.events("engine hangs"))
    lose(server, 1, signal.SIGSTOP)
    assert len(server.events("engine hangs")) == num_hung + 1


@pytest.mark.slow
def test_no_rank_outlives_a_launcher_that_was_killed() -> None:
    with serving("--tensor-parallel-size", "3") as server:
        pids = [*server.pids()["engine"], *ranks_of(server)]
        assert len(pids) == 4
        server.process.kill()
        until(lambda: not any(alive(pid) for pid in pids), 5)
