"""Checkpoints in safetensors files: one, or several with an index.

Read here rather than by the package of that name because that keeps whole files resident. Called by
`quire.engine.weights.load`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from quire.engine.errors import WeightError
from quire.engine.weights.index import checkpoint_files
from quire.engine.weights.mapped_checkpoint import Entry, MappedCheckpoint
from quire.engine.weights.mapped_file import MappedFile
from quire.engine.weights.safetensors_header import header_of

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What quantised weights are made of
_DTYPES = {**_FLOATS, "I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8,
           "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.uint8}
_RAW_NAMES = {dtype: name for name, dtype in _DTYPES.items() if name not in _FLOATS}


class SafetensorsCheckpoint(MappedCheckpoint):
    def __init__(self, directory: Path) -> None:
        files = [MappedFile(path) for path in checkpoint_files(directory, "model.safetensors")]
        entries: dict[str, Entry] = {}
        for file in files:
            for name, entry in _table(file):
                if name in entries:
                    raise WeightError(f"{file.path}: tensor {name!r} is also in {entries[name].file.path.name}")
                entries[name] = entry
        super().__init__(files, entries)

    def read(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        dtype = self._entries[name].dtype
        if isinstance(dtype, str) or dtype in _RAW_NAMES:
            kind = dtype if isinstance(dtype, str) else _RAW_NAMES[dtype]
            raise WeightError(f"tensor {name!r} has type {kind}; {', '.join(_FLOATS)} are read")
        super().read(name, out, rows, columns)


def _table(file: MappedFile) -> Iterable[tuple[str, Entry]]:
    table, base = header_of(file.path)
    return [(name, _entry(file, name, value, base)) for name, value in table.items()]


def _entry(file: MappedFile, name: str, value: dict[str, Any], base: int) -> Entry:
    start, stop = value["data_offsets"]
    kind, shape = value["dtype"], tuple(value["shape"])
    dtype = _DTYPES.get(kind)
    if dtype is not None and stop - start != math.prod(shape) * dtype.itemsize:
        raise WeightError(f"{file.path}: tensor {name!r} of shape {list(shape)} and type {kind} cannot take "
                          f"{stop - start} bytes")
    return Entry(file, dtype or kind, shape, base + start)
