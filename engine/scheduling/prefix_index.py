"""Which block holds the K and V of which prefix: a chain of hashes over full blocks, and an index from hash to block
for each KV group.

Refuses to know who holds a block or whether it is free (`block_pool`). Called by `allocator` and `scheduler`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 16  # two prompts under one index: a chance collision needs about 2**64 blocks


def extend_hashes(hashes: list[bytes], token_ids: Sequence[int], num_full: int, block_size: int, salt: str) -> None:
    """Lengthens `hashes` to the first `num_full` blocks of `token_ids`; those already there are not computed again.

    hash(block i) = H(hash(block i-1), tokens of block i as int32), and the chain starts from H(salt): equal hashes mean
    equal prefixes under an equal salt.
    """
    if len(hashes) >= num_full:
        return
    parent = hashes[-1] if hashes else blake2b(salt.encode(), digest_size=DIGEST_BYTES, person=b"salt").digest()
    tokens = array("i", token_ids[len(hashes) * block_size:num_full * block_size])
    packed, block_bytes = tokens.tobytes(), tokens.itemsize * block_size
    for start in range(0, len(packed), block_bytes):
        parent = blake2b(parent + packed[start:start + block_bytes], digest_size=DIGEST_BYTES).digest()
        hashes.append(parent)


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
