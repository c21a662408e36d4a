"""Which block holds the K and V of which prefix: a chain of hashes over full blocks, and an index from hash to block.

Refuses to know who holds a block or whether it is free (`block_pool`). Called by `allocator` and `scheduler`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
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
    """One block at most per hash, one hash at most per block. An entry lasts until its block is taken anew."""

    __slots__ = ("_block_of", "_hash_of", "num_hit_tokens", "num_query_tokens")

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        return block in self._hash_of

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix."""
        found = []
        block_of = self._block_of
        for digest in hashes:
            block = block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def count(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """Counts one prompt. Apart from `match`, which a waiting request repeats every step."""
        self.num_query_tokens += num_query_tokens
        self.num_hit_tokens += num_hit_tokens

    def register(self, digest: bytes, block: int) -> None:
        """`block` holds this prefix from now on, unless another block already does: the first one stays."""
        if digest not in self._block_of:
            assert block not in self._hash_of, f"block {block} is registered under another hash"
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def forget(self, block: int) -> None:
        """The block gets new content."""
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
