"""Names of KV blocks in place of hashes: equal where the prompts of a trace are, and made without looking at tokens.

Refuses to know what a name is looked up in (`prefix_index`). Called by `replay` alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

from quire.loadtest.simulate.trace import Arrival

_MOST_BLOCKS = 1 << 24  # of one request


class BlockNames:
    """A name is a number: whose beginning the block ends, and how far from the start it is."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._owners: dict[Hashable, int] = {}

    def of(self, number: int, arrival: Arrival) -> list[bytes]:
        """Of all full blocks that a request may ever have. `number` is its own; the type is that of real hashes."""
        num_blocks = (arrival.prompt_tokens + arrival.output_tokens) // self._block_size
        num_shared = arrival.prefix_tokens // self._block_size
        own = self._first(number)
        names = [*range(own + num_shared, own + num_blocks)]
        if num_shared:
            shared = self._first(arrival.prefix)
            names[:0] = range(shared, shared + num_shared)
        return cast("list[bytes]", names)

    def _first(self, owner: Hashable) -> int:
        return self._owners.setdefault(owner, len(self._owners)) * _MOST_BLOCKS
