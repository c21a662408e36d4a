"""An HTTP worker that is killed takes only its own streams with it, and the engine drops their work at once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server import Server, serving, until


class Streaming(threading.Thread):
    """A long stream in the background, and the HTTP worker that answers it."""

    def __init__(self, server: Server, seed: int, max_tokens: int = 300) -> None:
        super().__init__(daemon=True)
        self._client = server.client(timeout=120)
        self._model = server.get("/v1/models").json()["data"][0]["id"]
        self._seed = seed
        self._max_tokens = max_tokens
        self.text = ""
        self.cut = False
        self.start()

    def run(self) -> None:
        try:
            for chunk in self._client.completions.create(
                    model=self._model, prompt="Once upon a time", stream=True, seed=self._seed, temperature=0.8,
                    max_tokens=self._max_tokens, extra_body={"ignore_eos": True}):
                self.text += chunk.choices[0].text
        except (httpx.HTTPError, openai.APIError):
            self.cut = True


def connections_of(pid: int) -> int:
    """Accepted TCP connections that a process holds open."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    established = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(f"socket:[{fields[9]}]" in inodes for fields in established if fields[3] == "01")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_only_its_own_streams_end_and_their_blocks_are_freed() -> None:
    with serving("-asc", "2") as server:
        reference = Streaming(server, seed=1, max_tokens=60)
        reference.join(60)
        workers = server.pids()["workers"]
        streams: dict[int, list[Streaming]] = {pid: [] for pid in workers}
        while not all(streams.values()):  # whichever worker takes a connection answers it
            before = {pid: connections_of(pid) for pid in workers}
            stream = Streaming(server, seed=1)
            until(lambda stream=stream: stream.text, 30)
            owner = max(workers, key=lambda pid: connections_of(pid) - before[pid])
            streams[owner].append(stream)
        victim, survivor = workers
        num_running = sum(map(len, streams.values()))
        until(lambda: server.metric("vllm:num_requests_running") == num_running)
        os.kill(victim, signal.SIGKILL)
        for stream in streams[victim]:
            stream.join(10)
            assert stream.cut
        until(lambda: server.metric("vllm:num_requests_running") == len(streams[survivor]), 6)
        for stream in streams[survivor]:
            stream.join(90)
            assert not stream.cut
            assert stream.text.startswith(reference.text)
        until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0, 6)
        until(lambda: len(server.pids()["workers"]) == 2)
        after = Streaming(server, seed=1, max_tokens=5)
        after.join(30)
        assert after.text
        assert reference.text.startswith(after.text)
