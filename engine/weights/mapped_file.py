"""A read-only view of a file's bytes that gives its memory back: mapped pages count as resident until released.

Used by the checkpoint readers, one tensor at a time, and only while they load: a file that shrinks takes the pages away
that are mapped, and whoever reads them then gets SIGBUS.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from quire.engine.errors import WeightError


class MappedFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # Copy-on-write, because torch warns about buffers that cannot be written. Nobody writes.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # mmap's word for an empty file is ValueError
            raise WeightError(f"{path}: cannot be read: {error}") from error
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.num_bytes = len(self._map)

    @contextmanager
    def span(self, start: int, stop: int, what: str) -> Iterator[np.ndarray]:
        """Bytes [start, stop) as uint8; valid inside the `with` only, resident only as long."""
        self._check(start, stop, what)
        first = start - start % mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_WILLNEED, first, stop - first)
        yield self._bytes[start:stop]
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def _check(self, start: int, stop: int, what: str) -> None:
        if not 0 <= start <= stop <= self.num_bytes:
            raise WeightError(f"{self.path}: {what} lies at bytes {start} to {stop} of {self.num_bytes}; the file is "
                              "cut short or malformed")

    def close(self) -> None:
        """The mapping goes when the last view does: one may still hang on an error that is on its way up."""
        del self._bytes, self._map
