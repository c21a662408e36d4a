"""Where a worker's counts lie: files that all workers read, as prometheus_client's multiprocess mode has them, with
room that is really there.

A page of a mapped file that has no block kills the process that writes to it (SIGBUS) where the disk, or the tmpfs, is
full. Here every block is allocated before it is mapped; where that fails, the worker counts on in its own memory.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any

import prometheus_client.values
import structlog
from prometheus_client.mmap_dict import MmapedDict

log = structlog.get_logger(__name__)

_BYTES = 1 << 16  # of a file at first; it doubles as needed
_MOST_BESIDE_KEY = 64  # bytes of an entry: its length, padding, number and time

alone = False  # this worker's counts are in its memory only, because the run directory has no room


class AllocatedDict(MmapedDict):  # type: ignore[misc]
    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if read_mode or _allocated(filename):
            super().__init__(filename, read_mode)
            return
        descriptor = os.memfd_create("metrics")
        os.posix_fallocate(descriptor, 0, _BYTES)
        super().__init__(f"/proc/self/fd/{descriptor}")
        os.close(descriptor)

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _MOST_BESIDE_KEY > self._capacity:
            try:
                os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
            except OSError as error:
                _count_alone(error)
                self._move_into_memory()
        super()._init_value(key)

    def _move_into_memory(self) -> None:
        """The file stays for others to read, with the counts of this moment."""
        counts, file = self._m[:self._capacity], os.fdopen(os.memfd_create("metrics"), "r+b")
        os.posix_fallocate(file.fileno(), 0, 2 * self._capacity)
        file.write(counts)
        file.flush()
        self._f.close()
        self._f, self._m = file, mmap.mmap(file.fileno(), self._capacity)


def _allocated(path: str) -> bool:
    """Makes the file. False where there is no room: then there is no file, as one without numbers cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        _count_alone(error)
        return False
    try:
        os.posix_fallocate(descriptor, 0, _BYTES)
    except OSError as error:
        os.unlink(path)
        _count_alone(error)
        return False
    finally:
        os.close(descriptor)
    return True


def _count_alone(error: OSError) -> None:
    global alone
    if not alone:
        log.warning("the run directory has no room for metrics: this worker shows its own alone",
                    reason=errno.errorcode.get(error.errno or 0, str(error)))
    alone = True


def use() -> None:
    """From now on, for every metric of this process."""
    values: Any = prometheus_client.values
    values.MmapedDict = AllocatedDict
