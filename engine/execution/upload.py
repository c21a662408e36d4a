"""Everything a step sends to the device, in one copy.

Arrays are added by name, packed into one pinned buffer, and come back as device views. It is fresh each step:
torch's pinned allocator reuses one only after the copy that read it has finished, so no writer meets a copy in flight.
"""

from __future__ import annotations

import numpy as np
import torch

_TORCH = {"int32": torch.int32, "float32": torch.float32, "int64": torch.int64}
_ALIGN = 16


class Upload:
    __slots__ = ("_arrays", "_size", "_views")

    def __init__(self) -> None:
        self._arrays: dict[str, tuple[int, np.ndarray]] = {}
        self._views: dict[str, torch.Tensor] = {}
        self._size = 0

    def add(self, name: str, array: np.ndarray) -> None:
        assert name not in self._arrays, name
        assert array.dtype.name in _TORCH, array.dtype
        self._arrays[name] = (self._size, array)
        self._size += -(-array.nbytes // _ALIGN) * _ALIGN

    def send(self, device: torch.device) -> None:
        """One host-to-device copy on the current stream (none on CPU)."""
        pinned = device.type == "cuda"
        host = torch.empty(max(self._size, _ALIGN), dtype=torch.uint8, pin_memory=pinned)
        memory = host.numpy()
        for offset, array in self._arrays.values():
            memory[offset: offset + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
        sent = host.to(device, non_blocking=True) if pinned else host
        for name, (offset, array) in self._arrays.items():
            flat = sent[offset: offset + array.nbytes].view(_TORCH[array.dtype.name])
            self._views[name] = flat.view(array.shape)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._views[name]
