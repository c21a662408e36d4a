"""The file of replies: what is in it already, and lines added to it that a crash does not lose.

Each group of lines is on the disk (fsync) before `write` returns. A last line that a crash cut off is taken away; any
other that cannot be read is somebody's, and refused.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

from quire.app.batch.ids import CustomIds
from quire.app.batch.line import BadLine, Seen, Task, decode_seen
from quire.engine.messages import UNREADABLE


class OutputError(Exception):
    """The file cannot be gone on with; says what to do."""


class OutputFile:
    """`path` may be `-` for standard output, or a pipe: then nothing is there already, and nothing synced.

    Raises OutputError or OSError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._regular = path != "-" and (os.path.isfile(path) or not os.path.exists(path))
        self._file: BinaryIO
        if self._regular:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
            self._lock()
            _sync_directory(path)
        else:
            self._file = sys.stdout.buffer if path == "-" else open(path, "wb", buffering=0)  # noqa: SIM115
        self.num_done = self.num_failed = 0
        self._done = self._told = bytearray()

    def close(self) -> None:
        if self._path != "-":
            self._file.close()

    def is_file(self, descriptor: int) -> bool:
        """Whether `descriptor` is of the same file."""
        return self._regular and os.path.samestat(os.fstat(descriptor), os.fstat(self._file.fileno()))

    def read(self, ids: CustomIds, *, retry_failed: bool) -> None:
        """Takes in what is done; with `retry_failed`, lines that failed are taken out of the file first."""
        self._done, self._told = bytearray(ids.last_line + 1), bytearray(ids.last_line + 1)
        if not self._regular:
            return
        self._mend()
        if retry_failed:
            self._drop_failed()
        for number, seen in self._seen():
            self._note(number, seen, ids)
        self._file.seek(0, os.SEEK_END)

    def has(self, item: Task | BadLine) -> bool:
        """Whether there is a line for it."""
        done = self._told if item.custom_id is None else self._done
        return bool(done[item.number]) if item.number < len(done) else False

    def write(self, lines: bytes) -> None:
        """Whole lines. They are on the disk when this returns."""
        view = memoryview(lines)
        while view:
            view = view[self._file.write(view):]
        if self._regular:
            os.fsync(self._file.fileno())
        else:
            self._file.flush()

    def _note(self, number: int, seen: Seen, ids: CustomIds) -> None:
        if seen.custom_id is None:
            if seen.bad_line < len(self._told):
                self._told[seen.bad_line] = 1
        else:
            line = ids.line_of(seen.custom_id)
            if not line:
                raise OutputError(f"{self._path}, line {number}: the input has no custom_id {seen.custom_id[:80]!r}; "
                                  "these are the replies to another input. Name another file")
            self._done[line] = 1
        self.num_done += 1
        self.num_failed += seen.failed

    def _seen(self) -> Iterator[tuple[int, Seen]]:
        for number, _, seen in self._lines():
            yield number, seen

    def _lines(self) -> Iterator[tuple[int, bytes, Seen]]:
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for number, raw in enumerate(lines, 1):
                if raw.strip():
                    yield number, raw, self._decoded(raw, number)

    def _decoded(self, raw: bytes, number: int) -> Seen:
        try:
            return decode_seen(raw)
        except UNREADABLE as error:
            raise OutputError(f"{self._path}, line {number} is not a line of this program's ({error}). Name another "
                              "file, or take that line out") from None

    def _mend(self) -> None:
        """A line without its end is what a crash left of it."""
        size = end = os.fstat(self._file.fileno()).st_size
        while end and os.pread(self._file.fileno(), 1, end - 1) != b"\n":
            start = max(0, end - 2**16)
            piece = os.pread(self._file.fileno(), end - start, start)
            end = start + piece.rfind(b"\n") + 1
        if end < size:
            self._file.truncate(end)

    def _drop_failed(self) -> None:
        kept = self._path + ".new"
        with open(kept, "wb") as file:
            for _, raw, seen in self._lines():
                if not seen.failed:
                    file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(kept, stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
        os.replace(kept, self._path)
        before, self._file = self._file, open(self._path, "r+b", buffering=0)  # noqa: SIM115  (close() does)
        self._lock()
        before.close()
        _sync_directory(self._path)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OutputError(f"{self._path}: another run is writing to it") from None


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
