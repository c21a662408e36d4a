"""The K and V tensors of this rank, and how many blocks fit.

Refuses to know requests: it sees block counts only.
"""

from __future__ import annotations

import mmap

import torch

# Each [num_blocks, num_kv_heads, block_size, head_dim]; in 8 bits the order is that of kernels/reference/kv_codes.py.
KVCache = tuple[torch.Tensor, torch.Tensor]


def block_bytes(depth: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block in the `depth` layers of a group, K and V."""
    return 2 * depth * num_kv_heads * block_size * head_dim * dtype.itemsize


def allocate(depth: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype,
             device: torch.device) -> list[KVCache]:
    """Zeroed caches, a pair for each layer of a group, which all groups share: a block is one group's at a time.

    Zeroed, because a masked value that is NaN still poisons a product.
    """
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    return [(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(depth)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype.itemsize == 1 and dtype != torch.uint8:
        return _zeros(shape, torch.uint8, device).view(dtype)  # torch makes few things of 8-bit floats
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Anonymous pages read as zero and cost no memory until they are written.
    count = 1
    for size in shape:
        count *= size
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype, count=count).view(shape)
