"""What a request need not compute, because another one has: its leader, or any that ran before it.

Refuses to know where blocks are kept (`allocator`) and which hash names which block (`prefix_index`). Called by
`scheduler` alone.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from quire.engine.scheduling.allocator import BlockAllocator
from quire.engine.scheduling.block_run import BlockRun
from quire.engine.scheduling.prefix_index import extend_hashes
from quire.engine.scheduling.request import Request, RequestStatus

_NEVER = sys.maxsize


class Reuse(NamedTuple):
    """What a waiting request need not compute: its first `num_tokens` tokens, whose K and V lie in blocks already."""

    num_tokens: int
    shared: list[BlockRun]  # the full blocks among these, as far as windows let see them
    # The partly full ones after them, a group each, of which it gets copies to write on in; (): there is none.
    copied: tuple[int, ...] = ()
    leader: Request | None = None  # whose blocks they are; None: the prefix cache's


class PrefixCache:
    __slots__ = ("_allocator", "_block_size", "_index")

    def __init__(self, allocator: BlockAllocator) -> None:
        self._allocator = allocator
        self._index = allocator.index
        self._block_size = allocator.need.block_size

    @property
    def num_query_tokens(self) -> int:
        """Prompt tokens looked up."""
        return self._index.num_query_tokens if self._index is not None else 0

    @property
    def num_hit_tokens(self) -> int:
        """Prompt tokens found."""
        return self._index.num_hit_tokens if self._index is not None else 0

    def nothing(self) -> Reuse:
        return Reuse(0, self._allocator.nothing())

    def find(self, request: Request, step: int) -> Reuse:
        """Of the leader, once a step before `step` has computed its prompt, else of any; never all of a request's
        tokens, as the last must be computed to sample."""
        leader = request.leader
        if leader is None or not 0 <= leader.prompt_step < step:
            return self._match(request)
        # Everything it shares is computed by an earlier step, so that the last, partial block can be copied too.
        num_tokens = min(request.num_prompt_tokens, request.num_total - 1)
        num_full, partial = divmod(num_tokens, self._block_size)
        firsts = [self._allocator.need.first_column(group, num_tokens) for group in range(len(leader.blocks))]
        if not all(run.has(first, num_full + bool(partial)) for run, first in zip(leader.blocks, firsts)):
            return self._match(request)  # the leader has left its prompt behind
        return Reuse(num_tokens, [run.cut(first, num_full) for run, first in zip(leader.blocks, firsts)],
                     tuple(run.at(num_full) for run in leader.blocks) if partial else (), leader)

    def _match(self, request: Request) -> Reuse:
        """Nothing, where more of the request's beginning is wanted than K and V."""
        if request.needs_every_token:
            return self.nothing()
        shared = self._allocator.match(request.block_hashes[:self.hash_prompt(request)])
        return Reuse(shared[0].end * self._block_size, shared)

    def hash_prompt(self, request: Request) -> int:
        """Makes the hashes of all blocks that the request may reuse; how many they are."""
        num_full = (request.num_total - 1) // self._block_size
        if self._index is not None:
            extend_hashes(request.block_hashes, request.token_ids, num_full, self._block_size, request.root,
                          request.images)
        return num_full

    def count(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """Counts one prompt that was looked up."""
        if self._index is not None:
            self._index.count(num_query_tokens, num_hit_tokens)

    def register(self, request: Request) -> None:
        """Makes known the blocks that are full of known tokens, once planned: every later reader comes after.

        Later in this very step included, as each layer writes K and V before it reads.
        """
        index, block_size = self._index, self._block_size
        if index is None or request.status is not RequestStatus.RUNNING:
            request.register_at = _NEVER
            return
        num_full = min(request.num_computed, len(request.token_ids)) // block_size
        if num_full > request.num_registered:
            hashes = request.block_hashes
            extend_hashes(hashes, request.token_ids, num_full, block_size, request.root, request.images)
            for column in range(request.num_registered, num_full):
                index.register(hashes[column], [run.at(column) if column >= run.first else None
                                                for run in request.blocks])
            request.num_registered = num_full
        request.register_at = (request.num_registered + 1) * block_size
