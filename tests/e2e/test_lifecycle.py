"""Start, drain, crash and death of the whole server."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.server import KEY, Server, alive, serving, start, until

PROMPT = "The story of the sea begins"


class Stream(threading.Thread):
    """A streaming completion read in the background."""

    def __init__(self, server: Server, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self._client = server.client(timeout=60)
        self._max_tokens = max_tokens
        self.text = ""
        self.finish: str | None = None
        self.error: Exception | None = None
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            for chunk in self._client.completions.create(model="smollm2-135m-instruct", prompt=PROMPT, temperature=0,
                                                         max_tokens=self._max_tokens, stream=True,
                                                         extra_body={"ignore_eos": True}):
                self.text += chunk.choices[0].text
                self.finish = chunk.choices[0].finish_reason
                self.begun.set()
        except Exception as error:
            self.error = error
        finally:
            self.begun.set()

    def result(self) -> str:
        self.join(60)
        assert not self.is_alive()
        return self.text


def test_workers_are_small_and_know_no_key_and_no_torch(server: Server) -> None:
    pids = server.pids()
    assert len(pids["workers"]) == 2
    for pid in [*pids["master"], *pids["workers"]]:
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line)
        assert int(resident.split()[1]) < 150 * 1024
    for pid in [*pids["engine"], *pids["master"], *pids["workers"]]:
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_probes_need_no_key_and_the_rest_does(server: Server) -> None:
    import httpx

    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert httpx.get(f"{server.url}/metrics").status_code == 401


def test_a_stream_outlives_a_killed_engine_and_sigterm_lets_it_finish() -> None:
    with serving() as server:
        undisturbed = Stream(server, 30).result()
        stream = Stream(server, 30)
        assert stream.begun.wait(60)
        os.kill(server.pids()["engine"][0], signal.SIGKILL)
        assert stream.result() == undisturbed
        assert stream.error is None
        until(lambda: len(server.events("ready")) == 2, 60)
        last = Stream(server, 30)
        assert last.begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        assert last.result() == undisturbed
        assert last.finish == "length"
        assert server.wait_exit() == 0


def test_what_does_not_finish_in_time_ends_with_an_error_event() -> None:
    with serving("--shutdown-timeout", "1") as server:
        stream = Stream(server, 1000)
        assert stream.begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        stream.result()
        assert isinstance(stream.error, openai.APIError)
        assert "shutting down" in str(stream.error)
        assert server.wait_exit() == 0


def test_nothing_outlives_a_killed_launcher() -> None:
    with tempfile.TemporaryDirectory() as run_dir, serving("--run-dir", run_dir) as server:
        pids = [pid for group in server.pids().values() for pid in group]
        assert len(pids) >= 3
        server.process.kill()
        until(lambda: not any(map(alive, pids)), 5)


@pytest.mark.parametrize(("flags", "said"), [
    (["--dtype", "int3", "--block-size", "7"], ["--dtype", "--block-size"]),
    (["--host", "0.0.0.0"], ["--host", "VLLM_API_KEY"]),
    (["/nowhere/at/all"], ["/nowhere/at/all"]),
])
def test_wrong_settings_exit_2_and_say_why(flags: list[str], said: list[str]) -> None:
    server = start(*flags)
    assert server.wait_exit() == 2
    text = "".join(server.lines)
    assert all(word in text for word in said)


def test_a_taken_port_exits_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: Any = taken.getsockname()[1]
        server = start("--port", str(port))
        assert server.wait_exit() == 2
        assert str(port) in "".join(server.lines)
