"""The reload file: written into the run directory, it makes every worker read keys and certificates again.

It also holds the log level. Written by the launcher on SIGHUP and by the admin endpoints; workers watch it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec


class Reload(msgspec.Struct, frozen=True):
    log_level: str


def request_reload(path: str, log_level: str) -> None:
    """Whole or not at all, and noticed even when the level is the same. Raises OSError."""
    descriptor, pending = tempfile.mkstemp(dir=os.path.dirname(path), prefix="reload.")
    try:
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(Reload(log_level)))
        os.replace(pending, path)
    except BaseException:
        os.unlink(pending)
        raise


def requested(path: str) -> Reload | None:
    """The last request; None where there was none since the server started."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Reload)
    except FileNotFoundError:
        return None
