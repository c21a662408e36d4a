"""What the header of a safetensors file says: a length, a JSON table, then bytes.

Imports no torch, so that whoever only counts (`quire.engine.weights.size`) is light.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.engine.errors import WeightError

_MAX_HEADER_BYTES = 100_000_000


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
