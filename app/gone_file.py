"""Which engines are gone for good, as the launcher tells the workers: a file in the run directory.

Only the launcher knows that it starts an engine no more. A file, so that workers that come later hear of it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec


def write(path: str, gone: Mapping[int, bool]) -> None:
    """`gone`: by place, whether the engine there was killed from outside. Whole or not at all. Raises OSError."""
    pending = Path(path + ".new")
    try:
        pending.write_bytes(msgspec.json.encode(gone))
        os.replace(pending, path)
    except OSError:
        with contextlib.suppress(OSError):
            pending.unlink(missing_ok=True)
        raise


def read(path: str) -> dict[int, bool]:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=dict[int, bool])
    except FileNotFoundError:
        return {}
