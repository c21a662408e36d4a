"""Attention within segments of patches, each of which sees all of its own and nothing else: frames or windows.

Segments of one length are one batch, so a call is as many products as there are lengths: images are resized to a few
sizes, and windows have four lengths at most an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from quire.engine.layers.vision.host import sent

# Without cuDNN's, which makes a plan for each new length: the first image of each size would wait for it.
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Segments:
    """Patches that lie one segment after the other."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        starts, of_segments = np.cumsum([0, *lengths[:-1]]), np.array(lengths)
        self._batches: list[tuple[int, slice | torch.Tensor]] = []  # a length, and the patches of its segments
        for length in sorted(set(lengths)):
            rows = (starts[of_segments == length][:, None] + np.arange(length)).ravel()
            if rows[-1] - rows[0] == len(rows) - 1:
                self._batches.append((length, slice(int(rows[0]), int(rows[-1]) + 1)))
            else:
                self._batches.append((length, sent(rows.astype(np.int64), device)))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Each [patches, heads, head_dim] -> [patches, heads * head_dim]."""
        if len(self._batches) == 1:
            return _attend(q, k, v, self._batches[0][0])
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        for length, rows in self._batches:
            out[rows] = _attend(q[rows], k[rows], v[rows], length)
        return out


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int) -> torch.Tensor:
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(_BACKENDS):
        attended = F.scaled_dot_product_attention(q, k, v)
    return attended.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])
