"""Attention of one layer over the paged cache: rotate, write K and V, attend.

Refuses to know weights and where blocks come from. Called by `quire.engine.layers.self_attention`.
"""

from __future__ import annotations

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.kernels import ops


class PagedAttention:
    """Head counts are this rank's. `cos_sin` [positions, rotary_dim] float32 is shared by all layers."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, cos_sin: torch.Tensor) -> None:
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim ** -0.5
        self._cos_sin = cos_sin

    def __call__(self, qkv: torch.Tensor, inputs: AttentionInputs, kv_cache: tuple[torch.Tensor, torch.Tensor],
                 *, only_last: bool) -> torch.Tensor:
        """[tokens, (heads + 2 kv_heads) * head_dim] -> [tokens, heads * head_dim]. Overwrites qkv.

        `only_last`: of the inputs' last tokens alone, [seqs, heads * head_dim].
        """
        if inputs.advances is not None:
            inputs.advances()
        k_cache, v_cache = kv_cache
        heads = qkv.view(qkv.shape[0], -1, self.head_dim)
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        if not only_last:
            return ops.paged_attention(q, k_cache, v_cache, inputs, self.scale, (k, v, self._cos_sin)).flatten(1)
        ops.rotary_and_cache(q, k, v, self._cos_sin, inputs.positions, inputs.slots, k_cache, v_cache)
        q = q.index_select(0, inputs.last_tokens)
        return ops.paged_attention(q, k_cache, v_cache, inputs.of_last_tokens(), self.scale).flatten(1)
