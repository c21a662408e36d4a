"""Which block holds the K and V of which prefix: a chain of hashes over full blocks, and an index from hash to block
for each KV group.

What the K and V depend on beside the tokens goes into the hashes too: at the chain's root what all blocks depend on
(whose prefix it is), and in a block what lies on its tokens (the images there).

Refuses to know who holds a block or whether it is free (`block_pool`). Called by `allocator` and `scheduler`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Protocol

DIGEST_BYTES = 16  # two prompts under one index: a chance collision needs about 2**64 blocks


class Span(Protocol):
    """Tokens first to before end whose K and V depend on more than their ids: an image's placeholders."""

    @property
    def first(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def digest(self) -> bytes:
        """Of what they depend on."""


def root_of(salt: str) -> bytes:
    """Where the chains of all prefixes under that salt begin."""
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES, person=b"salt").digest()


def extend_hashes(hashes: list[bytes], token_ids: Sequence[int], num_full: int, block_size: int, root: bytes,
                  spans: Sequence[Span] = ()) -> None:
    """Lengthens `hashes` to the first `num_full` blocks of `token_ids`; those already there are not computed again.

    hash(block i) = H(hash(block i-1), tokens of block i as int32), and the chain starts from `root`: equal hashes mean
    equal prefixes under an equal root. A block on which spans lie has a hash of another kind, over these too: equal
    hashes mean that the same spans lie there at the same places. `spans` are in order and do not overlap.
    """
    first = len(hashes)
    if first >= num_full:
        return
    parent = hashes[-1] if hashes else root
    tokens = array("i", token_ids[first * block_size:num_full * block_size])
    packed, block_bytes = tokens.tobytes(), tokens.itemsize * block_size
    marks = _marks(spans, first, num_full, block_size) if spans else {}
    for column, start in enumerate(range(0, len(packed), block_bytes), first):
        block = parent + packed[start:start + block_bytes]
        if column in marks:
            parent = blake2b(block + marks[column], digest_size=DIGEST_BYTES, person=b"spans").digest()
        else:
            parent = blake2b(block, digest_size=DIGEST_BYTES).digest()
        hashes.append(parent)


def _marks(spans: Sequence[Span], first: int, end: int, block_size: int) -> dict[int, bytes]:
    """Of the columns from first to before end on which spans lie, what these add to their hashes: of each span where it
    begins, counted from the block's first token, where it ends, and its digest behind its length, so that no two lists
    of spans read alike."""
    marks: dict[int, bytes] = {}
    for span in spans:
        for column in range(max(span.first // block_size, first), min((span.end - 1) // block_size + 1, end)):
            place = column * block_size
            framed = struct.pack("<qqI", span.first - place, span.end - place, len(span.digest)) + span.digest
            marks[column] = marks.get(column, b"") + framed
    return marks


class PrefixIndex:
    """One block at most per group and hash, one hash at most per block. An entry lasts until its block is taken anew.
    """

    __slots__ = ("_block_of", "_place_of", "num_hit_tokens", "num_query_tokens")

    def __init__(self, num_groups: int) -> None:
        self._block_of: list[dict[bytes, int]] = [{} for _ in range(num_groups)]
        self._place_of: dict[int, tuple[int, bytes]] = {}  # group and hash
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    def __len__(self) -> int:
        return len(self._place_of)

    def __contains__(self, block: object) -> bool:
        return block in self._place_of

    def num_known(self, group: int, hashes: Sequence[bytes]) -> int:
        """How many of them from the first on have a block."""
        block_of = self._block_of[group]
        return next((i for i, digest in enumerate(hashes) if digest not in block_of), len(hashes))

    def last_unknown(self, group: int, hashes: Sequence[bytes], first: int, end: int) -> int | None:
        """The last of hashes[first:end] without a block; None where all have one."""
        block_of = self._block_of[group]
        return next((i for i in range(end - 1, first - 1, -1) if hashes[i] not in block_of), None)

    def blocks(self, group: int, hashes: Sequence[bytes]) -> list[int]:
        """Those of hashes that are known."""
        block_of = self._block_of[group]
        return [block_of[digest] for digest in hashes]

    def count(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """Counts one prompt. Apart from looking it up, which a waiting request repeats every step."""
        self.num_query_tokens += num_query_tokens
        self.num_hit_tokens += num_hit_tokens

    def register(self, digest: bytes, blocks: Sequence[int | None]) -> None:
        """Of each group, the block holds this prefix from now on, unless another block already does: the first one
        stays. None: a group's window has passed it."""
        place_of = self._place_of
        for group, (block_of, block) in enumerate(zip(self._block_of, blocks)):
            if block is not None and digest not in block_of:
                assert block not in place_of, f"block {block} is registered under another hash"
                block_of[digest] = block
                place_of[block] = group, digest

    def forget(self, blocks: Iterable[int]) -> None:
        """The blocks get new content."""
        place_of = self._place_of
        for block in blocks:
            if (place := place_of.pop(block, None)) is not None:
                group, digest = place
                del self._block_of[group][digest]
