"""What one client sends does not keep the others waiting: attacks with a probe beside them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e.server import Server, serving
from tests.faults.attacker import attack
from tests.faults.prober import beside

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--host", "127.0.0.1", key=None) as server:
        yield server


@pytest.mark.parametrize(("name", "most_ms"), [
    ("pipelining", 200), ("one_pipeline", 50), ("chunks", 50), ("bodies", 50)])
def test_no_probe_waits_for_an_attack(server: Server, name: str, most_ms: float) -> None:
    """Of 400 connections at once, accepting and reading them is most of the time."""
    parts = urlsplit(server.url)
    assert parts.hostname and parts.port
    address, (worker,) = (parts.hostname, parts.port), server.pids()["workers"]
    with beside(address, worker) as seen:
        attack(name, address)
    assert not seen.num_failed
    assert seen.longest_ms < most_ms
    assert seen.peak_mb < 500
    assert server.get("/readyz").status_code == 200
