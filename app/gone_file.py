"""Which engines are gone for good, as the launcher tells the workers: a file in the run directory.

Only the launcher knows that it starts an engine no more. A file, so that workers that come later hear of it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from quire.app import whole_file


def write(path: str, gone: Mapping[int, bool]) -> None:
    """`gone`: by place, whether the engine there was killed from outside. Raises OSError."""
    whole_file.replace(path, msgspec.json.encode(gone))


def read(path: str) -> dict[int, bool]:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=dict[int, bool])
    except FileNotFoundError:
        return {}
