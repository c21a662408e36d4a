"""The slopes of ALiBi: what a head takes off a score for each token that a key is away.

Press, Smith and Lewis, "Train Short, Test Long" (2022), section 3.
"""

from __future__ import annotations

import torch


def slopes(num_heads: int) -> torch.Tensor:
    """[num_heads] float32: 2^(-8 i / n) for n heads, a power of two; of more heads, the others are every second one of
    twice as many.
    """
    power = 1 << (num_heads.bit_length() - 1)
    first = _geometric(power, 8.0)
    return torch.cat((first, _geometric(2 * power, 8.0)[::2]))[:num_heads]


def mpt_slopes(num_heads: int, bias_max: float) -> torch.Tensor:
    """MPT's order: of the next power of two heads, every second one first, then the others."""
    power = 1 << (num_heads - 1).bit_length()
    every = _geometric(power, bias_max)
    return every if power == num_heads else torch.cat((every[1::2], every[::2]))[:num_heads]


def _geometric(count: int, largest: float) -> torch.Tensor:
    return torch.exp2(-torch.arange(1, count + 1, dtype=torch.float32) * largest / count)
