"""One of two engines is killed until it is given up, under load: the server serves on, and no stream fails or changes.
Then the other one too: every stream hears of it before its connection is cut."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import KEY, Server, serving, until
from tests.e2e.test_data_parallel import Stream, of_engine, texts

NUM_STREAMS, NUM_TOKENS = 12, 200
GIVEN_UP = "engine given up, the others serve on"


class RawStream(threading.Thread):
    """The bytes of a stream, to its end."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.text = ""
        self.failure: Exception | None = None
        self._url = url
        self.start()

    def run(self) -> None:
        body = {"prompt": "The sea", "max_tokens": 900, "ignore_eos": True, "stream": True}
        try:
            with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=60,
                              headers={"authorization": f"Bearer {KEY}"}) as reply:
                for piece in reply.iter_text():
                    self.text += piece
        except httpx.HTTPError as error:
            self.failure = error


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_healthy_engine_serves_on_and_goes_on_with_what_the_other_had() -> None:
    with serving("-asc", "2", "--data-parallel-size", "2", "--max-engine-restarts", "1") as server:
        undisturbed = texts(server, range(NUM_STREAMS), NUM_TOKENS)
        streams = [Stream(server, seed, NUM_TOKENS) for seed in range(NUM_STREAMS)]
        until(lambda: sum(len(stream.times) > 3 for stream in streams) == NUM_STREAMS, 60)
        until(lambda: of_engine(server, "vllm:num_requests_running", 0) > 0)  # what is lost with it
        until(lambda: kill(server, 0) or server.events(GIVEN_UP), 60)
        assert server.events(GIVEN_UP)[0]["engine"] == 0
        assert [stream.result() for stream in streams] == undisturbed
        assert sum(event["requests_moved"] for event in server.events("engine is gone for good"))
        until(lambda: server.get("/readyz").json() == {"status": "degraded", "engines_gone": [0]})
        assert [of_engine(server, "quire:engine_gone", place) for place in range(2)] == [1, 0]
        assert server.get("/livez").status_code == 200
        last_ones_hear_of_the_end(server)


def kill(server: Server, place: int) -> None:
    for pid in server.pids()["engine"]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"engine-{place}.sock" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def last_ones_hear_of_the_end(server: Server) -> None:
    streams = [RawStream(server.url) for _ in range(4)]
    until(lambda: all(stream.text for stream in streams), 60)
    until(lambda: kill(server, 1) or server.process.poll() is not None, 60)
    assert server.wait_exit() == 70
    for stream in streams:
        stream.join(30)
        assert stream.failure is None
        *_, last, done = [line.removeprefix("data: ") for line in stream.text.splitlines() if line]
        assert done == "[DONE]"
        assert json.loads(last)["error"]["code"] == 503
