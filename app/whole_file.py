"""Files of the run directory that others poll for: each is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace(path: str, data: bytes) -> None:
    """One writer at a time. Raises OSError, and then leaves what was there."""
    pending = Path(path + ".new")
    try:
        pending.write_bytes(data)
        os.replace(pending, path)
    except OSError:
        with contextlib.suppress(OSError):
            pending.unlink(missing_ok=True)
        raise
