"""K and V in 8 bits: how a cache holds them. Called by the references that read and write caches, and by tests.

A cache [blocks, kv_heads, block_size, head_dim] of float8_e4m3fn or float8_e5m2 holds x / scale in another order than
its shape says: [blocks, kv_heads, block_size / 2, head_dim, 2], two tokens that follow each other side by side.
"""

from __future__ import annotations

import torch

TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def is_coded(cache: torch.Tensor) -> bool:
    return cache.dtype in TYPES


def encoded(x: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """x * (1 / scale), in float32, rounded to the nearest number of that type, of two to the even one.

    What is too large becomes the largest, and so does NaN: what a place of a block holds from before can then always be
    multiplied by zero.
    """
    most = torch.finfo(dtype).max
    return (x.float() * (1 / scale)).nan_to_num(most).clamp(-most, most).to(dtype)


def put(cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor, codes: torch.Tensor) -> None:
    """codes [tokens, kv_heads, head_dim] into these places of the cache."""
    pairs = _pairs(cache)
    pairs[blocks, :, offsets // 2, :, offsets % 2] = codes.view(torch.uint8)


def numbers(cache: torch.Tensor) -> torch.Tensor:
    """The whole cache's, in the order of its shape, float32; not yet multiplied by the scale."""
    return in_order(_pairs(cache)).view(cache.dtype).float()


def in_order(pairs: torch.Tensor) -> torch.Tensor:
    """[..., block_size / 2, head_dim, 2] -> [..., block_size, head_dim], whatever the numbers are."""
    return pairs.movedim(-1, -2).flatten(-3, -2)


def _pairs(cache: torch.Tensor) -> torch.Tensor:
    num_blocks, kv_heads, block_size, head_dim = cache.shape
    return cache.view(torch.uint8).view(num_blocks, kv_heads, block_size // 2, head_dim, 2)
