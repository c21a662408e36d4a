"""From the host to the device without waiting for it."""

from __future__ import annotations

import numpy as np
import torch


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device; on a GPU it is queued on the current stream."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
