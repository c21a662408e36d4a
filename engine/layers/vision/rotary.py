"""The tower's rotary positions: half of a head's pairs turn by a patch's row, the others by its column."""

from __future__ import annotations

import torch

from quire.kernels import ops
from quire.kernels.attention_spec import Rotary

_BASE = 10_000.0


class Angles:
    """Of the patches of a batch: a row of the table each."""

    def __init__(self, table: torch.Tensor) -> None:
        """[patches, head_dim] float32, cosines first."""
        self._rotary = Rotary(table, moved=True)
        self._rows = torch.arange(len(table), dtype=torch.int32, device=table.device)

    def turn(self, x: torch.Tensor) -> None:
        """[patches, heads, head_dim], in place."""
        ops.rotate(x, self._rotary, self._rows)


class PatchRotary:
    def __init__(self, head_dim: int, device: torch.device) -> None:
        axis = head_dim // 2  # dimensions of an axis, in pairs with as many of the other half
        self._inverse = (1.0 / _BASE ** (torch.arange(0, axis, 2, dtype=torch.float32) / axis)).to(device)

    def angles(self, places: torch.Tensor) -> Angles:
        """[2, patches]: rows and columns."""
        by_axis = places.float()[:, :, None] * self._inverse  # [2, patches, head_dim / 4]
        angles = torch.cat((by_axis[0], by_axis[1]), -1)
        return Angles(torch.cat((angles.cos(), angles.sin()), -1))
