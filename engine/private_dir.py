"""Temporary directories that only this user can look into, and that do not outlive their processes for long.

Whoever is killed leaves its own behind, and the next that makes one sweeps it away. What tells ours from others' is a
file in it, which its owner holds a lock on for as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "quire-"
_LOCK = ".quire-owner"


class PrivateDirectory:
    """Made on construction, in `parent` or where temporary files are. Raises OSError where none can be."""

    def __init__(self, parent: str | None = None) -> None:
        _sweep(Path(parent or tempfile.gettempdir()))
        while True:
            self._directory = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent)  # mode 0700
            self._lock = os.open(f"{self.path}/{_LOCK}", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _locked(self._lock) and os.path.exists(f"{self.path}/{_LOCK}"):
                return
            os.close(self._lock)  # another process took it for a dead one's, and sweeps it away
            self._directory.cleanup()

    @property
    def path(self) -> str:
        return self._directory.name

    def remove(self) -> None:
        self._directory.cleanup()
        os.close(self._lock)


def _sweep(parent: Path) -> None:
    """Away with those whose owners are gone."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _sweep_one(entry.path)


def _sweep_one(path: str) -> None:
    if os.lstat(path).st_uid != os.geteuid():
        return
    lock = os.open(f"{path}/{_LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # absent: not one of these
    try:
        if _locked(lock):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
