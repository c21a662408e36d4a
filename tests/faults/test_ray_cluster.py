"""An engine over two nodes of a Ray cluster, two raylets of this machine: it answers as one device would, and survives
the loss of a node as soon as there is another."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, free_port, serving, until
from tests.e2e.test_lifecycle import Stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300),
              pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")]

NUM_TOKENS = 80
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


class Cluster:
    """Nodes of one CPU each. The first is the head."""

    def __init__(self, log: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._log = log
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.add("--head", "--port", self.address.partition(":")[2], "--include-dashboard=false")
        self.add("--address", self.address)

    def add(self, *flags: str) -> None:
        begun = self._log.read_text().count("Ray runtime started") if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._nodes.append(subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1",
                 "--node-ip-address=127.0.0.1", "--disable-usage-stats", *flags],
                stdout=log, stderr=log, env=os.environ | QUIET, start_new_session=True))
        until(lambda: self._log.read_text().count("Ray runtime started") > begun, 60)

    def lose(self, node: int) -> None:
        """With all that runs on it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._nodes[node].pid, signal.SIGKILL)
        self._nodes[node].wait()

    def close(self) -> None:
        for node in reversed(range(len(self._nodes))):
            self.lose(node)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray") / "log")
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Server]:
    with serving("--pipeline-parallel-size", "2", "--distributed-executor-backend", "ray", "--device", "cpu",
                 environment=QUIET | {"RAY_ADDRESS": cluster.address}) as server:
        yield server


def test_two_nodes_answer_as_one_process(server: Server) -> None:
    with serving() as alone:
        expected = Stream(alone, NUM_TOKENS).result()
    assert Stream(server, NUM_TOKENS).result() == expected


def test_the_loss_of_a_node_is_survived_once_there_is_another(cluster: Cluster, server: Server) -> None:
    undisturbed = Stream(server, NUM_TOKENS).result()
    streams = [Stream(server, NUM_TOKENS) for _ in range(2)]
    assert all(stream.begun.wait(60) for stream in streams)
    cluster.lose(1)
    until(lambda: server.events("engine broke"), 60)
    until(lambda: "waiting for 2 CPUs of the Ray cluster" in server.get("/readyz").text, 60)
    cluster.add("--address", cluster.address)
    assert [stream.result() for stream in streams] == [undisturbed] * 2
    assert all(stream.finish == "length" for stream in streams)
