"""KV blocks for sequences: the block pool and the prefix index, kept in agreement.

A sequence has a run of blocks for each KV group, which its `Request` owns. Shared blocks are full and never written
again: whoever shares a prefix writes from the first block after it on. So the prefix cache needs no copy-on-write; only
samples of one prompt and beams do, for the last block that they share where that is partly full. Called by
`scheduler` and `beam_group`.
Refuses to know order, budgets and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from quire.engine.kv_groups import BlockNeed
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.block_run import BlockRun
from quire.engine.scheduling.prefix_index import PrefixIndex


class Gaps(NamedTuple):
    """Blocks that a sequence is to get, in parallel lists."""

    groups: list[int]
    columns: list[int]


class BlockAllocator:
    __slots__ = ("_groups", "_most_columns", "index", "need", "pool")

    def __init__(self, num_blocks: int, need: BlockNeed, *, enable_prefix_caching: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self.need = need
        self._groups = range(len(need.windows))
        self._most_columns = [need.most_columns(group) for group in self._groups]
        self.index = PrefixIndex(len(need.windows)) if enable_prefix_caching else None

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0..1."""
        return 1.0 - self.pool.num_free / self.pool.num_blocks

    def nothing(self) -> list[BlockRun]:
        """What a sequence shares that shares nothing."""
        return [BlockRun() for _ in self._groups]

    def match(self, hashes: Sequence[bytes]) -> list[BlockRun]:
        """The longest prefix of which all is known that the token after it sees; all runs end at the same column."""
        index, need = self.index, self.need
        if index is None:
            return self.nothing()
        length = len(hashes)
        for group in self._groups:
            if need.windows[group] is None:
                length = index.num_known(group, hashes[:length])
        fits = False
        while length and not fits:  # a column that is missing in one group makes all shorter
            missing = [self._last_missing(group, hashes, length) for group in self._groups
                       if need.windows[group] is not None]
            fits = not any(column is not None for column in missing)
            length = min((column for column in missing if column is not None), default=length)
        runs = []
        for group in self._groups:
            first = need.first_column(group, length * need.block_size)
            runs.append(BlockRun(first, index.blocks(group, hashes[first:length])))
        return runs

    def _last_missing(self, group: int, hashes: Sequence[bytes], length: int) -> int | None:
        assert self.index is not None
        first = self.need.first_column(group, length * self.need.block_size)
        return self.index.last_unknown(group, hashes, first, length)

    def allocate(self, num_tokens: int, shared: Sequence[BlockRun], keep_free: int = 0) -> list[BlockRun] | None:
        """Blocks for `num_tokens`, of a window's group as many as it ever sees at once, the first ones being `shared`;
        None if fewer than `keep_free` would remain free."""
        gaps = self.gaps(shared, num_tokens)
        counts = self.pool.reference_counts
        num_revived = sum(1 for run in shared for block in run.blocks if counts[block] == 0)
        if self.pool.num_free - num_revived - len(gaps.groups) < keep_free:
            return None
        for run in shared:  # before any is taken, so that none of them is
            self.pool.share(run.blocks)
        runs = [BlockRun(run.first, run.blocks.copy()) for run in shared]
        self.fill(runs, gaps)
        return runs

    def leave_behind(self, runs: Sequence[BlockRun], position: int) -> None:
        """Frees the blocks of which no token from `position` on sees anything."""
        for group, window in enumerate(self.need.windows):
            if window is not None and position >= window:
                self._release(runs[group].drop_before(self.need.first_column(group, position)))

    def gaps(self, runs: Sequence[BlockRun], num_tokens: int) -> Gaps:
        """The blocks that are missing for `num_tokens`."""
        columns = -(-num_tokens // self.need.block_size)
        groups: list[int] = []
        at_columns: list[int] = []
        for group, (run, most) in enumerate(zip(runs, self._most_columns)):
            first, end = run.first + len(run.blocks), min(columns, run.first + most)
            if first < end:
                groups += [group] * (end - first)
                at_columns += range(first, end)
        return Gaps(groups, at_columns)

    def fill(self, runs: Sequence[BlockRun], gaps: Gaps) -> list[int]:
        """Takes those blocks, which must be free; they are parallel to `gaps`."""
        taken = self._take(len(gaps.groups))
        for group, block in zip(gaps.groups, taken):
            runs[group].blocks.append(block)
        return taken

    def fork(self, runs: Sequence[BlockRun], num_computed: int) -> tuple[list[BlockRun], tuple[int, ...]]:
        """For a second sequence with the first `num_computed` tokens of one that has `runs`: the full blocks, shared,
        and those that are partly full, a group each, which it is to copy; () where there are none."""
        num_full, partial = divmod(num_computed, self.need.block_size)
        shared = [run.cut(run.first, num_full) for run in runs]
        for run in shared:
            self.pool.share(run.blocks)
        return shared, tuple(run.at(num_full) for run in runs) if partial else ()

    def free(self, runs: list[BlockRun]) -> None:
        """Gives a whole sequence back and empties the list. The end goes first: it is of use to fewer prompts."""
        end = max(run.end for run in runs)
        # Of each column from the last on, the groups' blocks; a run that is shorter at its end has none there.
        backwards = [[None] * (end - run.end) + run.blocks[::-1] for run in runs]
        self._release([block for column in zip_longest(*backwards) for block in column if block is not None])
        runs.clear()

    def _take(self, count: int) -> list[int]:
        blocks = self.pool.take(count)
        if self.index is not None:
            self.index.forget(blocks)
        return blocks

    def _release(self, blocks: Sequence[int]) -> None:
        self.pool.release(blocks, () if self.index is None else self.index)
