"""The safetensors files of a checkpoint, and what their headers say: a length, a JSON table, then bytes.

Imports no torch, so that whoever only counts (`quire.engine.weights.size`) is light.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.engine.errors import WeightError

_MAX_HEADER_BYTES = 100_000_000


def files_of(directory: Path) -> list[Path]:
    """Raises WeightError where one is missing."""
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


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The table of tensors by name, and where their bytes begin. Raises WeightError for what is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise WeightError(f"{path}: is not a safetensors file (a header of {length} bytes)")
            raw = file.read(length)
        if len(raw) < length:
            raise WeightError(f"{path}: the header is cut short; was the download completed?")
        table = json.loads(raw)
        table.pop("__metadata__", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WeightError(f"{path}: the header is malformed: {error!r}") from error
    return table, 8 + length
