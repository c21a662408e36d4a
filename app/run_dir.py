"""The run directory: the engines' sockets, the workers' metrics files and settings. One server has it at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from quire.engine.errors import ConfigError

MAX_PATH = 80  # a Unix socket's path may have 107 characters, "/engine-63.sock" and some reserve included


class RunDirectory:
    """Context manager. A directory that it made itself goes away with it; a given one is only cleared."""

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted or os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self.path = ""

    def __enter__(self) -> RunDirectory:
        """Raises ConfigError where there can be none."""
        try:
            self.path = os.path.abspath(self._wanted) if self._wanted else tempfile.mkdtemp(prefix="quire-")
            if len(self.path) > MAX_PATH:
                raise ConfigError(f"--run-dir: {self.path} is longer than {MAX_PATH} characters, too long for a "
                                  "socket")
            if self._wanted:
                os.makedirs(self.path, mode=0o700, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(f"--run-dir: {self._wanted}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--run-dir: {self.path} belongs to a server that runs; give each its own") from None
        try:
            self._clear()
            os.mkdir(f"{self.path}/metrics")
        except OSError as error:  # a container's read-only root, somebody else's directory
            raise ConfigError(f"--run-dir: {self.path} cannot be written to: {error.strerror}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._clear()
        if not self._wanted:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def _clear(self) -> None:
        """Files of a server before would double its counters, and a drain file would keep this one from starting."""
        for name in ("settings.json", "drain", "drain.new", "reload", "keys.json", "probe.sock", "engine_starts",
                     "opened", "gone", "gone.new"):
            Path(self.path, name).unlink(missing_ok=True)
        for socket in Path(self.path).glob("engine*.sock"):
            socket.unlink(missing_ok=True)
        shutil.rmtree(f"{self.path}/metrics", ignore_errors=True)
