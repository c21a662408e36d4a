"""A real server that faults strike: started with what they need, brought from loading to its drain, and looked at."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import KEY, Server, alive, free_port, until
from tests.e2e.test_lifecycle import Stream

ROOT = Path(__file__).parents[2]
NUM_TOKENS = 50
STALL_S = 3.0  # --engine-stall-timeout


@dataclass(frozen=True)
class Setting:
    """How a server is started. In each string {folder} is the test's own folder."""

    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    mounts: str = ""  # shell commands, carried out in a mount namespace that only the server has
    stderr: str = ""  # a redirection of the shell
    takes_orders: bool = False  # its processes load tests/faults/hooked first
    prepare: Callable[[Path], None] = lambda folder: None  # called with the folder before the start


@dataclass
class Struck:
    server: Server
    folder: Path
    texts: set[str] = field(default_factory=set)  # of all streams that ended as they should
    notes: list[str] = field(default_factory=list)  # what faults want to remember
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def engine(self) -> int:
        until(lambda: self.server.pids()["engine"])
        return self.server.pids()["engine"][0]

    @property
    def workers(self) -> list[int]:
        until(lambda: self.server.pids()["workers"])
        return self.server.pids()["workers"]

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def processes(self) -> list[int]:
        return [pid for pids in self.server.pids().values() for pid in pids]

    def status(self, path: str) -> int:
        """0 while nobody listens, or nobody answers."""
        try:
            return self.server.get(path).status_code
        except httpx.HTTPError:
            return 0

    def count(self, event: str) -> int:
        return len(self.server.events(event))

    # Its life

    def load(self) -> None:
        """Until all its processes are there; the engine reads its weights then."""
        until(lambda: self.server.pids()["engine"] and self.server.pids()["workers"], 90)
        assert self.status("/readyz") != 200

    def get_ready(self, within_s: float = 90.0) -> None:
        until(lambda: self.server.process.poll() is not None or self.status("/readyz") == 200, within_s)
        assert self.server.process.poll() is None, "".join(self.server.lines)

    def stream(self) -> Stream:
        """One that has begun."""
        stream = Stream(self.server, NUM_TOKENS)
        assert stream.begun.wait(60)
        return stream

    def end_well(self, *streams: Stream) -> None:
        """Waits for their ends. Whatever happens, their text is that of the streams before."""
        for stream in streams:
            text = stream.result()
            assert stream.error is None
            assert stream.finish == "length"
            self.texts.add(text)
        assert len(self.texts) == 1, self.texts

    def drain(self) -> None:
        self.server.process.send_signal(signal.SIGTERM)
        until(lambda: self.status("/readyz") != 200)

    def end(self, within_s: float) -> int:
        """Its exit code; nothing of it may be left."""
        pids = self.processes()
        code = self.server.wait_exit(within_s)
        until(lambda: not any(map(alive, pids)), 5)
        return code


@contextmanager
def started(setting: Setting) -> Iterator[Struck]:
    """A server that has just been started; killed in the end, if it is still there."""
    with tempfile.TemporaryDirectory(prefix="quire-") as name, ExitStack() as closing:
        folder = Path(name)
        (folder / "run").mkdir(mode=0o700)
        setting.prepare(folder)
        port = free_port()
        command = [sys.executable, "-m", "quire", "serve", "--port", str(port), "--run-dir", f"{folder}/run",
                   "--max-model-len", "1024", "--cpu-threads", "1", "--engine-stall-timeout", str(STALL_S),
                   *(flag.format(folder=folder) for flag in setting.flags)]
        process = subprocess.Popen([*_in_shell(setting, folder), *command], env=_environment(setting, folder),
                                   stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        server = Server(process)
        server.url = f"http://127.0.0.1:{port}"
        try:
            yield Struck(server, folder, closing=closing)
        except BaseException:
            print("".join(server.lines[-50:]))
            raise
        finally:
            closing.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            server.wait_exit()


def _environment(setting: Setting, folder: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("QUIRE_", "VLLM_"))}
    if "--api-key-file" not in setting.flags:
        environment["VLLM_API_KEY"] = KEY
    if setting.takes_orders:
        environment |= {"PYTHONPATH": f"{ROOT}/tests/faults/hooked", "FAULT_ORDER": f"{folder}/order"}
    return environment | {name: value.format(folder=folder) for name, value in setting.environment}


def _in_shell(setting: Setting, folder: Path) -> list[str]:
    """What stands before the command: the shell becomes the server, so that its process is ours."""
    if not (setting.mounts or setting.stderr):
        return []
    shell = ["sh", "-c", " && ".join(filter(None, [setting.mounts.format(folder=folder),
                                                  f'exec "$@" {setting.stderr}'])), "sh"]
    if not setting.mounts:
        return shell
    try:
        allowed = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no private mount namespace here")
    return ["unshare", "-m", *shell]
