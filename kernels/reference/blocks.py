"""Whole KV blocks copied inside one layer's cache: copy-on-write of a prompt's last block."""

from __future__ import annotations

import torch


def copy_blocks(k_cache: torch.Tensor, v_cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """cache[targets[i]] = cache[sources[i]] for both caches.

    k_cache, v_cache: [blocks, kv_heads, block_size, head_dim]; sources, targets: [copies] int32. No block is both a
    source and a target, and no target occurs twice: the order does not matter.
    """
    k_cache[targets] = k_cache[sources]
    v_cache[targets] = v_cache[sources]
