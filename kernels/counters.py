"""Integers at zero on a device, for kernels whose last program to end does more than the others.

Whoever counts them up sets them back to zero, so that no kernel has to clear them. Kernels of one stream take turns.
"""

from __future__ import annotations

from functools import cache

import torch

NUM_COUNTERS = 1 << 20  # one for each running sample and KV head


def at_zero(device: torch.device, wanted: int) -> torch.Tensor:
    assert wanted <= NUM_COUNTERS, wanted
    return _counters(device)


@cache
def _counters(device: torch.device) -> torch.Tensor:
    return torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)
