"""M-RoPE: a token has three positions (frame, row, column), and each pair of a head's dimensions turns by one of them.

A text's tokens have three equal positions, so the plain table of a model's rotary embedding serves them; a step with
other tokens gets a table of its own, a row a token. Wang et al., "Qwen2-VL" (2024), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class MRope:
    """`table`: as rotary.cos_sin_table; `section`: how many pairs turn by frame, row and column, one stretch after the
    other, or `interleaved`: in turns, as far as rows and columns go."""

    def __init__(self, table: torch.Tensor, section: Sequence[int], *, interleaved: bool) -> None:
        half = table.shape[1] // 2
        assert sum(section) == half, (section, half)
        axes = torch.zeros(half, dtype=torch.int64)
        if interleaved:
            axes[1:3 * section[1]:3] = 1
            axes[2:3 * section[2]:3] = 2
        else:
            axes[section[0]:] = 1
            axes[section[0] + section[1]:] = 2
        self._table = table
        self._axes = axes.repeat(2).to(table.device)  # of cosines, then of sines

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """[3, tokens] int32 -> [tokens, rotary_dim] float32."""
        return self._table.gather(0, positions.index_select(0, self._axes).T.long())
