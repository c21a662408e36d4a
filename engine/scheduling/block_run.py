"""The blocks that a sequence holds of one KV group: those of consecutive columns of its block table.

The first column is 0 as long as no window has passed it. Owned by a `Request`; changed by `allocator` alone.
"""

from __future__ import annotations


class BlockRun:
    __slots__ = ("blocks", "first")

    def __init__(self, first: int = 0, blocks: list[int] | None = None) -> None:
        self.first = first
        self.blocks: list[int] = [] if blocks is None else blocks

    @property
    def end(self) -> int:
        """The column after the last."""
        return self.first + len(self.blocks)

    def has(self, first: int, end: int) -> bool:
        """Whether all columns from `first` to before `end` are held."""
        return self.first <= first and end <= self.end

    def at(self, column: int) -> int:
        return self.blocks[column - self.first]

    def cut(self, first: int, end: int) -> BlockRun:
        """A copy of the columns from `first` to before `end`."""
        return BlockRun(first, self.blocks[first - self.first:end - self.first])

    def drop_before(self, first: int) -> list[int]:
        """Lets go of the columns before `first`; their blocks."""
        count = max(0, first - self.first)
        dropped = self.blocks[:count]
        del self.blocks[:count]
        self.first += count
        return dropped

    def __repr__(self) -> str:
        return f"BlockRun({self.first}, {self.blocks})"
