"""Learned positions of a square of patches, stretched to an image's rows and columns by linear interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from quire.engine.layers.vision.geometry import frame_places
from quire.engine.layers.vision.host import sent
from quire.engine.model_facts.vision import Grid
from quire.engine.weights.checkpoint import View


class PositionTable:
    def __init__(self, view: View, num_positions: int, width: int, merge: int) -> None:
        self._weight = view.take("weight", (num_positions, width))
        self._side = round(num_positions**0.5)
        self._merge = merge

    def __call__(self, grids: Sequence[Grid]) -> torch.Tensor:
        """[patches, width] float32, in the order of `geometry`."""
        taps = [_taps(h, w, self._side, self._merge) for _, h, w in grids]
        rows, shares = (np.concatenate([np.tile(tap[i], t) for tap, (t, _, _) in zip(taps, grids)], 1) for i in (0, 1))
        device = self._weight.device
        total = torch.zeros(rows.shape[1], self._weight.shape[1], device=device)
        for row, share in zip(sent(rows, device), sent(shares, device)):
            total += F.embedding(row, self._weight) * share.unsqueeze(1)
        return total


@lru_cache(maxsize=64)
def _taps(h: int, w: int, side: int, merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each patch of a frame the four places of the table around it, and their shares: [4, h * w]."""
    (up, lower), (left, right) = _axis(h, side), _axis(w, side)
    row, column = frame_places(h, w, merge)
    corners = [(up, left), (up, right), (lower, left), (lower, right)]
    rows = [vertical[0][row] * side + horizontal[0][column] for vertical, horizontal in corners]
    shares = [vertical[1][row] * horizontal[1][column] for vertical, horizontal in corners]
    return np.stack(rows), np.stack(shares)


def _axis(size: int, side: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Of `size` places from end to end of an axis of `side`: the neighbour before each and its share, and the next."""
    places = np.arange(size, dtype=np.float32) * (side - 1) / np.float32(max(size - 1, 1))
    before = np.floor(places)
    share = (places - before).astype(np.float32)
    index = before.astype(np.int64)
    return (index, 1 - share), (np.minimum(index + 1, side - 1), share)
