"""What the three checkpoint targets have in common: once a file is open, its tensors are read as layers read them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from quire.engine.weights.checkpoint import Checkpoint

MOST_NUMBERS = 2**16  # of a tensor that is read: layers ask for the shapes that they need, and never for a wild one
ALL = slice(None)


def read_all(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Read those of `names` that are there and not too long. Raises WeightError."""
    for name in names:
        shape = checkpoint.shape(name)
        if shape is not None and math.prod(max(1, length) for length in shape) <= MOST_NUMBERS:
            checkpoint.read(name, torch.empty(shape), ALL, ALL)
