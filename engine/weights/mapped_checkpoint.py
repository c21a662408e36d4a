"""Checkpoints that keep each tensor as it is, row behind row, somewhere in a file. A format says where.

Called by the readers of such formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from quire.engine.weights.checkpoint import Checkpoint, Shape
from quire.engine.weights.mapped_file import MappedFile


@dataclass(frozen=True, slots=True)
class Entry:
    file: MappedFile
    dtype: torch.dtype | str  # a name where it is a type that cannot be read
    shape: Shape
    start: int  # bytes from the beginning of the file


class MappedCheckpoint(Checkpoint):
    """Closes `files`, which may be more than `entries` name."""

    def __init__(self, files: list[MappedFile], entries: dict[str, Entry]) -> None:
        self._files = files
        self._entries = entries
        self.num_elements = sum(math.prod(entry.shape) for entry in entries.values())

    def shape(self, name: str) -> Shape | None:
        entry = self._entries.get(name)
        return None if entry is None else entry.shape

    def stored_dtype(self, name: str) -> torch.dtype | None:
        entry = self._entries.get(name)
        return entry.dtype if entry is not None and isinstance(entry.dtype, torch.dtype) else None

    def read(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        self.read_raw(name, out, rows, columns)

    def read_raw(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        entry = self._entries[name]
        assert isinstance(entry.dtype, torch.dtype), entry
        shape = entry.shape or (1,)
        # Whole rows are one span; of each only this rank's columns are touched.
        first, last, _ = rows.indices(shape[0])
        row_bytes = math.prod(shape[1:]) * entry.dtype.itemsize
        with entry.file.span(entry.start + first * row_bytes, entry.start + last * row_bytes, name) as data:
            part = torch.from_numpy(data).view(entry.dtype).view(last - first, *shape[1:])
            out.copy_(part.view(entry.shape) if not entry.shape else part if part.dim() == 1 else part[:, columns])

    def unread(self, taken: set[str]) -> Iterable[str]:
        return self._entries.keys() - taken

    def close(self) -> None:
        for file in self._files:
            file.close()
