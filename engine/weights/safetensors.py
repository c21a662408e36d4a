"""Checkpoints in safetensors files: one, or several with an index.

Read here rather than by the package of that name because that keeps whole files resident. Called by
`quire.engine.weights.load`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire.engine.errors import WeightError
from quire.engine.weights.checkpoint import Checkpoint, Shape
from quire.engine.weights.index import checkpoint_files
from quire.engine.weights.mapped_file import MappedFile
from quire.engine.weights.safetensors_header import header_of

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Entry:
    file: MappedFile
    dtype: str
    shape: Shape
    start: int  # bytes from the beginning of the file
    stop: int


class SafetensorsCheckpoint(Checkpoint):
    def __init__(self, directory: Path) -> None:
        self._files = [MappedFile(path) for path in checkpoint_files(directory, "model.safetensors")]
        self._entries: dict[str, _Entry] = {}
        for file in self._files:
            for name, entry in _table(file):
                if name in self._entries:
                    raise WeightError(f"{file.path}: tensor {name!r} is also in {self._entries[name].file.path.name}")
                self._entries[name] = entry
        self.num_elements = sum(math.prod(entry.shape) for entry in self._entries.values())

    def shape(self, name: str) -> Shape | None:
        entry = self._entries.get(name)
        return None if entry is None else entry.shape

    def read(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        entry = self._entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise WeightError(f"tensor {name!r} has type {entry.dtype}; {', '.join(_DTYPES)} are read")
        # Whole rows are one span; of each only this rank's columns are touched.
        first, last, _ = rows.indices(entry.shape[0])
        row_bytes = (entry.stop - entry.start) // entry.shape[0]
        with entry.file.span(entry.start + first * row_bytes, entry.start + last * row_bytes, name) as data:
            part = torch.from_numpy(data).view(dtype).view(last - first, *entry.shape[1:])
            out.copy_(part if part.dim() == 1 else part[:, columns])

    def unread(self, taken: set[str]) -> Iterable[str]:
        return self._entries.keys() - taken

    def close(self) -> None:
        for file in self._files:
            file.close()


def _table(file: MappedFile) -> Iterable[tuple[str, _Entry]]:
    table, base = header_of(file.path)
    try:
        return [(name, _entry(file, name, value, base)) for name, value in table.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightError(f"{file.path}: the header is malformed: {error!r}") from error


def _entry(file: MappedFile, name: str, value: dict[str, Any], base: int) -> _Entry:
    start, stop = value["data_offsets"]
    entry = _Entry(file, value["dtype"], tuple(value["shape"]), base + start, base + stop)
    dtype = _DTYPES.get(entry.dtype)
    if dtype is not None and entry.stop - entry.start != math.prod(entry.shape) * dtype.itemsize:
        raise WeightError(f"{file.path}: tensor {name!r} of shape {list(entry.shape)} and type {entry.dtype} cannot "
                          f"take {entry.stop - entry.start} bytes")
    return entry
