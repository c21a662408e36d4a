"""A folder for the inputs of readers that take a path."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path


def folder() -> Path:
    """A new one, which is removed when the process ends."""
    made = tempfile.TemporaryDirectory(prefix="quire-fuzz-")
    atexit.register(made.cleanup)
    return Path(made.name)


@cache
def kept_folder(name: str) -> Path:
    """The same one in each call with that name."""
    return folder()
