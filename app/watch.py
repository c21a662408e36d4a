"""Watches files by their stat, once a second: for key files, certificates, and what the launcher leaves for workers.

Polling, because it sees also what inotify does not: a ConfigMap's swapped symlink, a file on a network disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable

POLL_S = 1.0

Stamp = tuple[int, int, int] | None


def stamp(path: str) -> Stamp:
    """Changes whenever the file is written, replaced, or goes; None where there is none."""
    try:
        found = os.stat(path)  # follows links, so a link that points elsewhere is a change
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


async def watch(paths: Iterable[str], on_change: Callable[[], None], seen: list[Stamp] | None = None,
                poll_s: float = POLL_S) -> None:
    """Call `on_change`, which must not raise, after any of `paths` changed; runs until cancelled.

    `seen` are their stamps when they were read; unset: as they are now.
    """
    paths = list(paths)
    seen = [stamp(path) for path in paths] if seen is None else seen
    while True:
        await asyncio.sleep(poll_s)
        now = [stamp(path) for path in paths]
        if now != seen:
            seen = now
            on_change()
