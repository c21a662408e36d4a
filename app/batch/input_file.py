"""The file of requests, read line by line as often as needed; of standard input, a copy in a temporary file."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from quire.app.batch.line import BadLine, Task, parse

MOST_LINE_BYTES = 64 * 2**20
_PIECE = 2**20
_BOM = b"\xef\xbb\xbf"  # which some editors write


class InputFile:
    """`path` may be `-`. Raises OSError where it cannot be read."""

    def __init__(self, path: str) -> None:
        self._file: BinaryIO
        if path == "-":
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  (close() does)
            shutil.copyfileobj(sys.stdin.buffer, self._file)
        else:
            self._file = open(path, "rb")  # noqa: SIM115
            self._file.seek(0)  # a pipe, which cannot be read twice, fails here
        self.fileno = self._file.fileno

    def close(self) -> None:
        self._file.close()

    def requests(self) -> Iterator[Task | BadLine]:
        """From the first on; empty lines are passed over, and counted as lines."""
        self._file.seek(0)
        number = 0
        while raw := self._file.readline(MOST_LINE_BYTES):
            number += 1
            if len(raw) == MOST_LINE_BYTES and not raw.endswith(b"\n"):
                self._skip_line()
                yield BadLine(number, None, f"the line is longer than {MOST_LINE_BYTES} bytes")
                continue
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if line.strip():
                yield parse(line, number)

    def _skip_line(self) -> None:
        while (piece := self._file.readline(_PIECE)) and not piece.endswith(b"\n"):
            pass
