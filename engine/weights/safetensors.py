"""Checkpoints in safetensors files: one, or several with an index.

The format is a length, a JSON table and bytes; it is read here rather than by the package of that name because that
keeps whole files resident. Called by `quire.engine.weights.load`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire.engine.errors import WeightError
from quire.engine.weights.checkpoint import Checkpoint, Shape
from quire.engine.weights.mapped_file import MappedFile

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class _Entry:
    file: MappedFile
    dtype: str
    shape: Shape
    start: int  # bytes from the beginning of the file
    stop: int


class SafetensorsCheckpoint(Checkpoint):
    def __init__(self, directory: Path) -> None:
        self._files = [MappedFile(path) for path in _files(directory)]
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


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        whole = directory / "model.safetensors"
        if whole.is_file():
            return [whole]
        raise WeightError(f"{directory} holds neither model.safetensors nor model.safetensors.index.json; convert "
                          "pytorch_model.bin and the like to safetensors first")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightError(f"{index}: is not an index of safetensors files: {error!r}") from error
    for name in names:
        if Path(name).name != name:
            raise WeightError(f"{index}: names {name!r}, which is not a file of that directory")
        if not (directory / name).is_file():
            raise WeightError(f"{index}: names {name!r}, which is not there; was the download completed?")
    return [directory / name for name in names]


def _table(file: MappedFile) -> Iterable[tuple[str, _Entry]]:
    with file.span(0, 8, "the header's length") as data:
        length = int.from_bytes(data.tobytes(), "little")
    if length > _MAX_HEADER_BYTES:
        raise WeightError(f"{file.path}: is not a safetensors file (a header of {length} bytes)")
    with file.span(8, 8 + length, "the header") as data:
        raw = data.tobytes()
    try:
        table = json.loads(raw)
        return [(name, _entry(file, name, value, 8 + length)) for name, value in table.items()
                if name != "__metadata__"]
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
