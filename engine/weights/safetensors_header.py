"""What the header of a safetensors file says: a length, a JSON table, then bytes.

Imports no torch, so that whoever only counts (`quire.engine.weights.size`) is light.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.engine.errors import WeightError
from quire.engine.weights.tensor_limits import MAX_DIMENSIONS, MAX_NUMBER

_MAX_HEADER_BYTES = 100_000_000


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The table of tensors by name, and where their bytes begin. Each entry has a "dtype" (text), a "shape" (a list of
    lengths) and "data_offsets" (its first byte, and that behind its last). Raises WeightError for what is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise WeightError(f"{path}: is not a safetensors file (a header of {length} bytes)")
            raw = file.read(length)
        if len(raw) < length:
            raise WeightError(f"{path}: the header is cut short; was the download completed?")
        table = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise WeightError(f"{path}: the header is malformed: {error!r}") from error
    if not isinstance(table, dict):
        raise WeightError(f"{path}: the header is malformed: it is no table of tensors")
    table.pop("__metadata__", None)
    for name, entry in table.items():
        if not _is_entry(entry):
            raise WeightError(f"{path}: the header is malformed: tensor {name!r} needs a dtype, a shape "
                              "and data_offsets")
    return table, 8 + length


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(shape) > MAX_DIMENSIONS:
        return False
    is_counted = all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (*shape, *offsets))
    return is_counted and len(offsets) == 2 and offsets[0] <= offsets[1]
