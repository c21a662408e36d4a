"""Which layers share KV blocks, and how many blocks a sequence holds at most.

Layers that look back equally far form groups, and a group has a block table of its own: what no layer of it sees any
more goes back to the pool. A block belongs to one group and holds K and V of `depth` layers, so one pool serves all.
Imports no torch; used by the scheduler, by each rank, and by whoever must know how much memory a context takes.
"""

from __future__ import annotations

import itertools
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# More groups save little more, and each has a table that steps must fill.
MOST_GROUPS = 8

Window = int | None  # tokens that a layer sees, its own included; None: all before it


@dataclass(frozen=True, slots=True)
class KVGroups:
    """The groups of a model, those without a window first. A layer of group g has place `depths[layer]` in its blocks.
    """

    windows: tuple[Window, ...]  # a group each
    group_of: tuple[int, ...]  # a layer each
    depths: tuple[int, ...]  # a layer each

    @property
    def depth(self) -> int:
        """Layers that a block has room for."""
        return max(self.depths) + 1

    @property
    def num_telling_layers(self) -> int:
        """How many of the last layers have an example of each window before the very last."""
        kinds = [self.windows[group] for group in self.group_of[:-1]]
        return 1 + max((len(kinds) - _last(kinds, kind) for kind in set(kinds)), default=0)

    def of_layers(self, layers: range) -> KVGroups:
        """Of a pipeline's stage, which has only these: the same groups and tables, with its own layers in them."""
        group_of = self.group_of[layers.start:layers.stop]
        return KVGroups(self.windows, group_of, _depths(group_of))


def kv_groups(windows: Sequence[Window], num_layers: int) -> KVGroups:
    """`windows`: of each layer; empty where all layers see all.

    Groups are as large as there are layers of the rarest window, so that little of a block is left empty (Gemma 3's 29
    layers with a window and 5 without make six groups and one, of 5 layers each).
    """
    each = list(windows) or [None] * num_layers
    counts = Counter(each)
    size = min(counts.values())
    while sum(-(-count // size) for count in counts.values()) > max(MOST_GROUPS, len(counts)):
        size += 1
    groups: dict[Window, range] = {}
    group_windows: list[Window] = []
    for window in sorted(counts, key=lambda window: (window is not None, window or 0)):
        groups[window] = range(len(group_windows), len(group_windows) + -(-counts[window] // size))
        group_windows += [window] * len(groups[window])
    # In turns, so that each stage of a pipeline has some layers of every group.
    turns = {window: itertools.cycle(those) for window, those in groups.items()}
    group_of = tuple(next(turns[window]) for window in each)
    return KVGroups(tuple(group_windows), group_of, _depths(group_of))


def _last(kinds: list[Window], kind: Window) -> int:
    return len(kinds) - 1 - kinds[::-1].index(kind)


def _depths(group_of: Sequence[int]) -> tuple[int, ...]:
    counts: Counter[int] = Counter()
    depths = []
    for group in group_of:
        depths.append(counts[group])
        counts[group] += 1
    return tuple(depths)


@dataclass(frozen=True, slots=True)
class BlockNeed:
    """How many blocks a sequence holds at most, of all groups, where a step computes up to `step_tokens` of it."""

    windows: tuple[Window, ...]
    block_size: int
    step_tokens: int

    def first_column(self, group: int, position: int) -> int:
        """The first column of the group's table that a token at `position`, or a later one, sees anything of."""
        window = self.windows[group]
        return 0 if window is None else max(0, position - window + 1) // self.block_size

    def most_columns(self, group: int) -> int:
        """How many columns a step ever sees of the group's table."""
        window = self.windows[group]
        if window is None:
            return sys.maxsize
        return -(-(window + self.step_tokens - 2) // self.block_size) + 1

    def blocks_for(self, num_tokens: int) -> int:
        columns = -(-num_tokens // self.block_size)
        return sum(min(columns, self.most_columns(group)) for group in range(len(self.windows)))

    def blocks_for_beams(self, width: int, num_shared: int, num_tokens: int) -> int:
        """Of `width` sequences of so many tokens, of which they share the first `num_shared`."""
        columns, full = -(-num_tokens // self.block_size), num_shared // self.block_size
        return sum(full + width * (columns - full) if window is None else width * min(columns, self.most_columns(group))
                   for group, window in enumerate(self.windows))

    def room(self, num_blocks: int) -> int:
        """How many tokens the longest sequence has that does with so many blocks; very many where all have windows."""
        columns = bisect_right(range(1, 2**31), num_blocks, key=lambda c: self.blocks_for(c * self.block_size))
        return columns * self.block_size
