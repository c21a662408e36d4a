"""A model split over devices: which part of a layer and which layers are this rank's, and what ranks exchange.

Tensor parallelism splits every layer (Megatron-LM, Shoeybi et al. 2019, section 3), pipeline parallelism deals whole
layers out to stages. Refuses to know layers and weights. With one rank all is its own and nothing is exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from quire.engine import division
from quire.kernels import ops


class Collectives(Protocol):
    """Exchanges between the ranks of one tensor-parallel group. All of them call alike, in the same order."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, the same to the last bit on each; in place or not."""

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """residual += the sum of x over ranks, in place; then the norm of residual."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[*shape] -> [ranks, *shape]."""


class Neighbours(Protocol):
    """The ranks that hold the same part of the stage before and the stage after."""

    def send(self, x: torch.Tensor) -> None:
        """To the next stage."""

    def receive(self, x: torch.Tensor) -> None:
        """From the stage before, into `x`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """This rank's place among the pipeline's stages."""

    index: int = 0
    count: int = 1
    neighbours: Neighbours | None = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1

    def share(self, num_layers: int) -> range:
        """The layers of this stage. Raises ConfigError where they do not divide."""
        return division.layers_of_stage(num_layers, self.index, self.count)

    def send(self, hidden: torch.Tensor) -> None:
        assert self.neighbours is not None
        self.neighbours.send(hidden)

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[tokens, hidden] of the stage before."""
        assert self.neighbours is not None
        hidden = torch.empty((num_tokens, hidden_size), dtype=dtype, device=device)
        self.neighbours.receive(hidden)
        return hidden


@dataclass(frozen=True, slots=True)
class Parallel:
    """This rank's place among those that split each layer, and its pipeline stage."""

    rank: int = 0
    size: int = 1
    collectives: Collectives | None = None
    stage: Stage = field(default_factory=Stage)

    def share(self, count: int, what: str) -> slice:
        """This rank's part of `count` things. Raises ConfigError where they do not divide."""
        return division.share(count, what, self.rank, self.size)

    def share_uneven(self, count: int) -> slice:
        """As `share`; where they do not divide, the last rank has fewer than the others."""
        part = -(-count // self.size)
        return slice(min(self.rank * part, count), min((self.rank + 1) * part, count))

    def share_kv_heads(self, count: int) -> slice:
        """As `share`; with fewer KV heads than ranks, neighbouring ranks hold the same head."""
        return division.share_of_kv_heads(count, self.rank, self.size)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks; `x` is given away."""
        return x if self.collectives is None else self.collectives.all_reduce(x)

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """residual += the sum of x over ranks, in place; then the norm of residual."""
        add = ops.add_rms_norm if self.collectives is None else self.collectives.add_rms_norm
        return add(x, residual, weight, eps)

    def all_gather_last(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """[n, mine] -> [n, count]: the ranks' parts, as `share_uneven` made them, side by side."""
        if self.collectives is None:
            return x
        part = -(-count // self.size)
        if x.shape[-1] < part:  # all must send alike
            x = torch.nn.functional.pad(x, (0, part - x.shape[-1]))
        gathered = self.collectives.all_gather(x)
        return gathered.transpose(0, 1).reshape(x.shape[0], self.size * part)[:, :count].contiguous()
