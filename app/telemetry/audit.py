"""The audit log: one JSON line for every admin action, refused ones too, written before the action happens.

Append-only, one write a line, so that processes share the file; a file that was moved away is made anew. An action
that cannot be written down must not happen: callers let AuditError pass. Never keys or digests, only names.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timezone
from typing import Any

import msgspec

from quire.engine.errors import ConfigError


class AuditError(Exception):
    """The line could not be written."""


class AuditLog:
    """Without a path nothing is written, and nothing fails."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file: int | None = None

    def check(self) -> None:
        """Raises ConfigError where no line could be written."""
        try:
            self._open()
        except OSError as error:
            raise ConfigError(f"--audit-log: {self._path} cannot be written: {error.strerror}") from None

    def write(self, action: str, outcome: str, *, key: str = "", client: str = "", request_id: str = "",
              **details: Any) -> None:
        """Raises AuditError."""
        if self._path is None:
            return
        line = msgspec.json.encode({
            "time": datetime.now(timezone.utc), "action": action, "outcome": outcome, "key": key, "client": client,
            "request_id": request_id, "details": details, "pid": os.getpid()}) + b"\n"
        try:
            self._open()
            assert self._file is not None
            if os.write(self._file, line) != len(line):
                raise OSError("the disk took only a part of the line")
        except OSError as error:
            raise AuditError(f"{self._path}: {error}") from None

    def _open(self) -> None:
        """Also after a rotation: the file that the path names now is not the one that is open."""
        if self._path is None:
            return
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                    return
            os.close(self._file)
            self._file = None
        # A pipe that nobody reads refuses then, instead of holding up whoever writes; a file takes no notice of that.
        self._file = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
