"""Attention within segments of patches, each of which sees all of its own and nothing else: frames or windows.

Segments of one length are one batch, so a call is as many products as there are lengths: images are resized to a few
sizes, and windows have four lengths at most an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from quire.engine.layers.vision.host import sent


class Segments:
    """Patches that lie one segment after the other."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        starts = np.cumsum([0, *lengths[:-1]])
        self._lengths = sorted(set(lengths))
        self._rows = []  # of each length, the patches of all its segments
        if len(self._lengths) > 1:
            of_segments = np.array(lengths)
            for length in self._lengths:
                rows = starts[of_segments == length][:, None] + np.arange(length)
                self._rows.append(sent(rows.ravel().astype(np.int64), device))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Each [patches, heads, head_dim] -> [patches, heads * head_dim]."""
        if not self._rows:
            return _attend(q, k, v, self._lengths[0])
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        for length, rows in zip(self._lengths, self._rows):
            out[rows] = _attend(q[rows], k[rows], v[rows], length)
        return out


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int) -> torch.Tensor:
    q, k, v = (x.view(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])
