"""The run directory: the engines' sockets, the workers' metrics files and settings. One server has it at a time.

Whoever can write there could take the engine's place, so it must be this user's alone, unless its owner says that
nobody else can reach it (--allow-shared-run-dir, as in a container).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from quire.engine.errors import ConfigError
from quire.engine.private_dir import PrivateDirectory

MAX_PATH = 80  # a Unix socket's path may have 107 characters, "/engine-63.sock" and some reserve included
# Metrics of one HTTP worker, settings, sockets; what a directory must have room for before a server starts in it.
ROOM_BYTES = 4 * 2**20
_FILES = ("settings.json", "drain", "drain.new", "reload", "keys.json", "probe.sock", "engine_starts", "opened",
          "gone", "gone.new", "fetch", "fetch.new")


def wanted_run_dir(flag: str | None) -> str:
    """The directory that is given, or nothing."""
    return flag or os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]


@contextlib.contextmanager
def run_directory(flag: str | None, *, shared: bool = False) -> Iterator[str]:
    """Its path. One that was made for the occasion goes away with it; a given one is only cleared.

    Raises:
        ConfigError: there can be none.
    """
    wanted = wanted_run_dir(flag)
    if wanted:
        with _given(os.path.abspath(wanted), shared) as path:
            yield path
        return
    try:
        made = PrivateDirectory()
    except OSError as error:
        raise ConfigError(f"--run-dir: no temporary directory: {error.strerror}; give one, or set TMPDIR") from None
    try:
        _prepare(made.path)
        yield made.path
    finally:
        made.remove()


@contextlib.contextmanager
def _given(path: str, shared: bool) -> Iterator[str]:
    if len(path) > MAX_PATH:
        raise ConfigError(f"--run-dir: {path} is longer than {MAX_PATH} characters, too long for a socket")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"--run-dir: {path}: {error.strerror}") from None
    try:
        if not shared and (problem := openness(path, os.fstat(lock))):
            raise ConfigError(f"--run-dir: {problem}")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--run-dir: {path} belongs to a server that runs; give each its own") from None
        _prepare(path)
        yield path
        _clear(path)
    finally:
        os.close(lock)


def openness(path: str, found: os.stat_result) -> str:
    """Who else could get at it, and what to do; empty where nobody can."""
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        problem = f"{path} belongs to user {found.st_uid}, and the server runs as {os.geteuid()}"
        advice = "give a directory of its own"
    elif mode & 0o077:
        problem, advice = f"{path} is open to others (mode {mode:04o})", f"chmod 700 {path}"
    else:
        return ""
    return (f"{problem}: who writes there could take the engine's place; {advice}, or say --allow-shared-run-dir where "
            "nobody else is")


def _prepare(path: str) -> None:
    try:
        _clear(path)
        os.mkdir(f"{path}/metrics", 0o700)
    except OSError as error:  # a container's read-only root, somebody else's directory, a full disk
        raise ConfigError(f"--run-dir: {path} cannot be written to: {error.strerror}") from None
    free = os.statvfs(path)
    if free.f_bavail * free.f_frsize < ROOM_BYTES:
        raise ConfigError(f"--run-dir: {path} has room for {free.f_bavail * free.f_frsize >> 10} KiB, and "
                          f"{ROOM_BYTES >> 10} KiB are needed; free some, or give another directory")


def _clear(path: str) -> None:
    """Files of a server before would double its counters, and a drain file would keep this one from starting."""
    for name in _FILES:
        Path(path, name).unlink(missing_ok=True)
    for socket in Path(path).glob("engine*.sock"):
        socket.unlink(missing_ok=True)
    shutil.rmtree(f"{path}/metrics", ignore_errors=True)
