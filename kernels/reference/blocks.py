"""Whole KV blocks copied inside one layer's cache: copy-on-write of a prompt's last block."""

from __future__ import annotations

import torch


def copy_blocks(k_cache: torch.Tensor, v_cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """cache[targets[i]] = cache[sources[i]] for both caches.

    k_cache, v_cache: [blocks, kv_heads, block_size, head_dim]; sources, targets: [copies] int32. No block is both a
    source and a target, and no target occurs twice: the order does not matter.
    """
    for cache in (k_cache, v_cache):
        if cache.element_size() == 1:
            cache = cache.view(torch.uint8)  # torch indexes few things in 8-bit floats
        cache[targets] = cache[sources]
