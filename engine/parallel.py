"""Tensor parallelism: which part of a layer is this rank's, and the two exchanges between ranks.

Refuses to know layers and weights. With one rank everything is the whole and nothing is exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Parallel:
    rank: int = 0
    size: int = 1

    def share(self, count: int, what: str) -> slice:
        """This rank's part of `count` things. Raises ConfigError where they do not divide."""
        if count % self.size:
            raise ConfigError(f"--tensor-parallel-size: {what} ({count}) does not divide by {self.size}")
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def share_kv_heads(self, count: int) -> slice:
        """As `share`; with fewer KV heads than ranks, neighbouring ranks hold the same head."""
        if count >= self.size:
            return self.share(count, "the number of KV heads")
        if self.size % count:
            raise ConfigError(f"--tensor-parallel-size: {self.size} is not a multiple of the number of KV heads "
                              f"({count})")
        head = self.rank * count // self.size
        return slice(head, head + 1)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(x)
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' tensors side by side along the last dimension."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x)
        return torch.cat(parts, dim=-1)
