"""The tower's rotary positions: half of a head's pairs turn by a patch's row, the others by its column."""

from __future__ import annotations

import torch

_BASE = 10_000.0


class PatchRotary:
    """Angles of patches, and what they turn: (a, b) -> (a cos - b sin, b cos + a sin) of dimensions d and d + half."""

    def __init__(self, head_dim: int, device: torch.device) -> None:
        axis = head_dim // 2  # dimensions of an axis, in pairs with as many of the other half
        self._inverse = (1.0 / _BASE ** (torch.arange(0, axis, 2, dtype=torch.float32) / axis)).to(device)

    def angles(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[2, patches] -> cos and sin, each [patches, 1, head_dim / 2] float32."""
        turned = places.float()[:, :, None] * self._inverse  # [2, patches, head_dim / 4]
        angles = torch.cat((turned[0], turned[1]), -1).unsqueeze(1)
        return angles.cos(), angles.sin()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[patches, heads, head_dim], computed in float32 and rounded once."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
