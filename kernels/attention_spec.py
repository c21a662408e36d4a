"""What attention computes beside softmax(q K^T) V: constants of a layer, which its kernels are compiled for.

Knows no step and no weights. Made by the models; read by `quire.engine.attention`, the attention kernels and their
references.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

Style = Literal["half", "interleaved"]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionSpec:
    """The contract of each field is in kernels/reference/attention.py."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None  # tokens that a query sees, itself included; None: all before it
    softcap: float = 0.0  # 0: none
    slopes: torch.Tensor | None = None  # [num_heads] float32, ALiBi's
    sinks: torch.Tensor | None = None  # [num_heads] float32, a logit in each softmax that has no value
    # What the numbers of a cache in 8 bits are multiplied by; other caches hold K and V themselves.
    k_scale: float = 1.0
    v_scale: float = 1.0

    def of_heads(self, heads: slice, kv_heads: slice) -> AttentionSpec:
        """The spec of a rank that has only these heads."""
        slopes, sinks = (None if each is None else each[heads].contiguous() for each in (self.slopes, self.sinks))
        return replace(self, num_heads=heads.stop - heads.start, num_kv_heads=kv_heads.stop - kv_heads.start,
                       slopes=slopes, sinks=sinks)


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """Which pairs of dimensions are turned, and by what: d and d + half, or 2 d and 2 d + 1 where interleaved."""

    table: torch.Tensor  # [positions, rotary_dim] float32: rotary_dim / 2 cosines, then as many sines
    style: Style = "half"
    # A token's row of the table is `inputs.positions`', which may not be its place in the sequence (M-RoPE).
    moved: bool = False

    @property
    def half(self) -> int:
        """Pairs of dimensions that are turned; a head's other dimensions stay as they are."""
        return self.table.shape[1] // 2

    @property
    def interleaved(self) -> bool:
        return self.style == "interleaved"


# K and V of a step's tokens, before rotation; None where positions are not rotary.
Fresh = tuple[torch.Tensor, torch.Tensor, Rotary | None]
