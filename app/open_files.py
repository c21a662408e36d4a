"""How many files the server's processes may have open. Each connection takes one."""

from __future__ import annotations

import resource

MOST_FILES = 2**20  # some programs look at each number that a file may have


def raise_limit() -> None:
    """Take what the hard limit allows; children inherit it. The soft limit is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = attainable(hard)
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def attainable(hard: int) -> int:
    """What `raise_limit` makes of a hard limit."""
    return MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
