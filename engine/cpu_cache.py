"""How much KV cache an engine takes on a CPU where nobody says. Loads no torch: the doctor asks too.

Pages of it cost memory when they are first written, so more than is ever used costs nothing.
"""

from __future__ import annotations

LEAST_BYTES = 240 << 20
_SHARE_OF_FREE = 0.5  # the rest is for whoever else needs memory later


def default_bytes(context_bytes: int, *, asked_for: bool, free_bytes: int, num_sharers: int) -> int:
    """One whole context; where nobody asked for its length, as far as a share of the free memory goes. Never less than
    LEAST_BYTES, however little is free.

    `num_sharers` are the ranks, of all engines, that take their cache from the same memory.
    """
    if not asked_for:
        context_bytes = min(context_bytes, int(free_bytes * _SHARE_OF_FREE) // num_sharers)
    return max(LEAST_BYTES, context_bytes)
