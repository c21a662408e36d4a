"""A whole server as its user starts it: `quire serve` as a process, on a free port, with the packaged model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

START_S = 90.0
KEY = "e2e-key-e2e-key-e2e-key"
ANY_WEIGHTS = ("--load-format", "dummy")  # where nobody reads what is said: the real ones take 2 s more


class Server:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def events(self, name: str) -> list[dict[str, Any]]:
        found = []
        for line in list(self.lines):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    found.append(event)
        return found

    def wait_ready(self) -> None:
        until(lambda: self.events("ready") or self.process.poll() is not None, START_S)
        assert self.events("ready"), "".join(self.lines)
        self.url = self.events("ready")[0]["url"]

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", max_retries=0, **({"api_key": KEY} | options))

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=10)

    def metric(self, name: str) -> float:
        """The sum over a metric's label sets."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")))

    def wait_exit(self, timeout_s: float = START_S) -> int:
        try:
            return self.process.wait(timeout_s)
        finally:
            self._reader.join(5)
            if self.process.returncode is not None and self.process.stderr is not None:
                self.process.stderr.close()

    def pids(self) -> dict[str, list[int]]:
        """Of the engine, gunicorn's master and its workers."""
        children = _children(self.process.pid)
        engine = [pid for pid in children if "quire.engine" in _command(pid)]
        master = [pid for pid in children if "quire.app.http_master" in _command(pid)]
        return {"engine": engine, "master": master, "workers": [w for m in master for w in _children(m)]}


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]
    return []


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {timeout_s} s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def start(*flags: str, environment: dict[str, str] | None = None) -> Server:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUIRE_", "VLLM_", "COV_"))}
    command = [sys.executable, "-m", "quire", "serve", "--port", "0", "--max-model-len", "1024",
               "--cpu-threads", "1", *flags]  # a second thread would wait for the tests' own
    return Server(subprocess.Popen(command, env=env | (environment or {}), stderr=subprocess.PIPE, text=True,
                                   stdin=subprocess.DEVNULL))


@contextmanager
def serving(*flags: str, environment: dict[str, str] | None = None, key: str | None = KEY) -> Iterator[Server]:
    server = start(*flags, environment=({} if key is None else {"VLLM_API_KEY": key}) | (environment or {}))
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGTERM)
            try:
                server.wait_exit()
            except subprocess.TimeoutExpired:
                server.process.kill()
        server.wait_exit()
