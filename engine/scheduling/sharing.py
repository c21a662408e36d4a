"""Which running requests begin with the same KV blocks, so that a decode step can read those once for all of them.

One group a step: of all that there are, about the one that saves most. Called by `scheduler` when the running requests
have changed; refuses to know how attention makes use of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quire.engine.scheduling.request import Request

# Fewer tokens that need not be read again are not worth the second kernel.
MIN_SAVED_TOKENS = 8192
# Requests whose blocks are looked through: a group that is worth it has a large part of all.
NUM_PROBES = 4


class SharedBeginning(NamedTuple):
    rows: frozenset[int]
    num_tokens: int

    def is_worth_it(self, num_members: int) -> bool:
        return (num_members - 1) * self.num_tokens >= MIN_SAVED_TOKENS


NOTHING_SHARED = SharedBeginning(frozenset(), 0)


def largest_shared_beginning(running: Sequence[Request], holders: Sequence[int], block_size: int) -> SharedBeginning:
    """`holders`: how many requests hold each block; whoever holds a shared block holds all before it."""
    most_saved, last_block, depth = MIN_SAVED_TOKENS - 1, -1, 0
    for request in running[::max(1, len(running) // NUM_PROBES)]:
        for column, block in enumerate(_blocks(request), 1):
            if holders[block] == 1:
                break
            saved = (holders[block] - 1) * column * block_size
            if saved > most_saved:
                most_saved, last_block, depth = saved, block, column
    if not depth:
        return NOTHING_SHARED
    rows = frozenset(r.row for r in running if _blocks(r)[depth - 1:depth] == [last_block])
    return SharedBeginning(rows, depth * block_size)


def _blocks(request: Request) -> list[int]:
    """Of the first group, that of layers without a window: others do not see a beginning for long."""
    return request.blocks[0].blocks
