"""Where the patches of images are: their places in the image, the order of windows, what attends to what.

Patches of an image come frame by frame, and within a frame in blocks of merge * merge that become one token: (rows of
blocks, columns of blocks, merge, merge). Pure integers on the host. Called by `tower`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from quire.engine.model_facts.vision import Grid


def patch_places(grids: Sequence[Grid], merge: int) -> np.ndarray:
    """[2, patches] int32: row and column of each patch."""
    return np.concatenate([np.tile(frame_places(h, w, merge), t) for t, h, w in grids], 1)


@lru_cache(maxsize=64)
def frame_places(h: int, w: int, merge: int) -> np.ndarray:
    """Of one frame, [2, h * w]."""
    places = np.indices((h, w), np.int32).reshape(2, h // merge, merge, w // merge, merge)
    return np.ascontiguousarray(places.transpose(0, 1, 3, 2, 4).reshape(2, -1))


def frame_lengths(grids: Sequence[Grid]) -> list[int]:
    """Patches of each frame."""
    return [h * w for t, h, w in grids for _ in range(t)]


def window_order(grids: Sequence[Grid], merge: int, side: int) -> tuple[np.ndarray, list[int]]:
    """The tokens of all images window by window, [tokens] int64, and how many each window has.

    Windows are squares of `side` tokens, cut off at the right and lower edges.
    """
    orders: list[np.ndarray] = []
    counts: list[int] = []
    first = 0
    for t, h, w in grids:
        order, frame_counts = _windows(h // merge, w // merge, side)
        for _ in range(t):
            orders.append(order + first)
            counts += frame_counts
            first += len(order)
    return np.concatenate(orders), counts


@lru_cache(maxsize=64)
def _windows(rows: int, columns: int, side: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Of one frame of so many tokens."""
    tokens = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    windows = [tokens[top:top + side, left:left + side].ravel()
               for top in range(0, rows, side) for left in range(0, columns, side)]
    return np.concatenate(windows), tuple(len(window) for window in windows)
