"""Paged attention in Triton: sequences of one query token, and the others. Contract: kernels/reference/attention.py.

Grids depend on nothing that lives on the device, so all kernels can be captured.
"""

from __future__ import annotations

from typing import Any

import torch

from quire.kernels import launch
from quire.kernels.attention_spec import AttentionSpec, Fresh
from quire.kernels.balanced_decode import balanced_decode
from quire.kernels.decode import decode
from quire.kernels.prefill import prefill
from quire.kernels.rotary import rotary_and_cache


def paged_attention(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, spec: AttentionSpec,
                    fresh: Fresh | None = None) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    assert q.stride(2) == 1
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    num_seqs = inputs.context_lens.shape[0]
    num_decodes = num_seqs if inputs.max_query_len == 1 else inputs.num_decodes
    if launch.is_batch_invariant():
        num_decodes = 0  # `prefill` takes a sequence's context in one order, however many of its tokens are computed
    num_kv_heads, block_size = k_cache.shape[1:3]
    balanced = None
    if inputs.shared is None or spec.window is not None:
        balanced = launch.balanced_tile(q.device, k_cache.element_size(), q.shape[2], block_size, num_decodes,
                                       num_kv_heads, q.shape[1] // num_kv_heads)
    fused = balanced is None and num_decodes * num_kv_heads <= launch.FUSED_ROTARY_PROGRAMS
    if fresh is not None:
        first = num_decodes if fused else 0  # decoding sequences come first, with one token each
        if first < q.shape[0]:
            k, v, rotary = fresh
            rotary_and_cache(q[first:], k[first:], v[first:], rotary, inputs.positions[first:], inputs.slots[first:],
                             k_cache, v_cache, spec.k_scale, spec.v_scale)
    if num_decodes and balanced is not None:
        balanced_decode(q, k_cache, v_cache, inputs, num_decodes, spec, balanced, out)
    elif num_decodes:
        decode(q, k_cache, v_cache, inputs, num_decodes, spec, fresh if fused else None, out)
    if num_decodes < num_seqs:
        prefill(q, k_cache, v_cache, inputs, num_decodes, spec, None if fresh is None else fresh[:2], out)
    return out
