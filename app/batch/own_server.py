"""A `quire serve` for the time of one run: on a Unix socket in a private directory, so it needs no key and no port.

Its settings are the caller's, less all that is about who may reach it. It ends with us, however we end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any

import msgspec

from quire.app.options import OPTIONS
from quire.app.peer import UNIX, Lost, Peer, Unreachable
from quire.app.sources import Loaded
from quire.engine.exit_codes import EXIT_CONFIG

STOP_S = 30.0
_LOOK_S = 0.5
# About who may reach a server, and what is told of it: nobody but us reaches this one.
_LEFT_OUT = frozenset({
    "host", "port", "root_path", "api_key", "api_key_file", "allow_public_without_key", "admin_port", "admin_host",
    "ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "ssl_client_names",
    "forwarded_allow_ips", "run_dir", "allow_shared_run_dir", "audit_log"})
# Unless they are given: a line of the file has time, and warnings are enough beside the progress of the run.
_DEFAULTS = {"queue_timeout": 0.0, "ttft_timeout": 0.0, "request_timeout": 0.0, "log_level": "warning",
             "disable_access_log": True, "max_connections_per_ip": 0}
# What settings and a service manager's words to another server come by.
_VARIABLES = ("QUIRE_", "VLLM_API_KEY", "CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")


class StartError(Exception):
    """It did not come up. `exit_code` is what run-batch should end with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Readiness(msgspec.Struct):
    status: str = ""
    phase: str = ""
    fraction: float = 0.0


def settings_of(loaded: Loaded, socket: str) -> dict[str, Any]:
    """What is written to its settings file."""
    values = {}
    for name, option in OPTIONS.items():
        owner: Any = loaded.settings.engine if option.of_engine else loaded.settings
        value = getattr(owner, name)
        if name in loaded.sources and name not in _LEFT_OUT and value is not None:
            values[name] = value
    return {**_DEFAULTS, **values, "uds": socket}


class OwnServer:
    """Context manager. `tell` gets a line for people, time and again while the model loads."""

    def __init__(self, loaded: Loaded, tell: Callable[[str], None]) -> None:
        self._loaded = loaded
        self._tell = tell
        self._directory = ""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> OwnServer:
        try:
            self._start()
            self._wait_ready()
        except BaseException:
            self._stop(now=True)
            raise
        return self

    def _start(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="quire-batch-")  # for this user alone
        socket = os.path.join(self._directory, "s")
        settings = os.path.join(self._directory, "settings.yaml")
        with open(settings, "w", encoding="utf-8") as file:
            json.dump(settings_of(self._loaded, socket), file)  # which is YAML too
        self.peer = Peer(UNIX + socket)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quire.app.batch.child", "--config", settings], env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True)  # Ctrl-C is for us, who stop it when the lines are kept
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=_pass_on, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._stop(now=kind is not None)

    def ended(self) -> str:
        """Why it answers no more; empty while it runs."""
        code = None if self._process is None else self._process.poll()
        return "" if code is None else f"the server of this run ended with exit code {code}"

    def _wait_ready(self) -> None:
        while not (said := self.ended()):
            try:
                reply = self.peer.get("/readyz")
            except (Unreachable, Lost):
                self._tell("starting")
            else:
                if reply.status == 200:
                    return
                readiness = msgspec.json.decode(reply.body, type=_Readiness)
                self._tell(f"{readiness.phase or readiness.status} {readiness.fraction:.0%}")
            time.sleep(_LOOK_S)
        assert self._process is not None
        raise StartError(said, EXIT_CONFIG if self._process.returncode == EXIT_CONFIG else 1)

    def _stop(self, *, now: bool) -> None:
        """`now`: whatever is still under way, nobody waits for."""
        if self._process is not None:
            _end(self._process, now=now)
        if self._reader is not None:
            self._reader.join(5)  # what it said last is told
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)


def _end(process: subprocess.Popen[str], *, now: bool) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    if now:
        time.sleep(0.1)  # two at once would arrive as one
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pass_on(said: IO[str]) -> None:
    with said:
        for line in said:
            sys.stderr.write(line)
