"""Attention of one layer over the paged cache: rotate, write K and V, attend.

Refuses to know weights and where blocks come from. Called by `quire.engine.layers.self_attention`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.kernels import ops
from quire.kernels.attention_spec import AttentionSpec, Rotary


class PagedAttention:
    """Head counts are this rank's. `rotary` is shared by all layers that turn alike; None: positions are not rotary.
    `group`: the layer's KV group."""

    def __init__(self, spec: AttentionSpec, rotary: Rotary | None, group: int = 0) -> None:
        self.spec = spec
        self._group = group
        self._rotary = rotary

    def scaled(self, k_scale: float, v_scale: float) -> PagedAttention:
        """The same, with these scales of a cache in 8 bits."""
        spec = replace(self.spec, k_scale=k_scale, v_scale=v_scale)
        return PagedAttention(spec, self._rotary, self._group)

    def __call__(self, qkv: torch.Tensor, inputs: AttentionInputs, kv_cache: tuple[torch.Tensor, torch.Tensor],
                 *, only_last: bool) -> torch.Tensor:
        """[tokens, (heads + 2 kv_heads) * head_dim] -> [tokens, heads * head_dim]. Overwrites qkv.

        `only_last`: of the inputs' last tokens alone, [seqs, heads * head_dim].
        """
        inputs = inputs.of_group(self._group)
        if inputs.advances is not None:
            inputs.advances()
        k_cache, v_cache = kv_cache
        spec = self.spec
        heads = qkv.view(qkv.shape[0], -1, spec.head_dim)
        q, k, v = heads.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), dim=1)
        rotary = self._rotary
        if inputs.angles is not None and rotary is not None:
            rotary = Rotary(inputs.angles, rotary.style, moved=True)
        if not only_last:
            return ops.paged_attention(q, k_cache, v_cache, inputs, spec, (k, v, rotary)).flatten(1)
        ops.rotary_and_cache(q, k, v, rotary, inputs.positions, inputs.slots, k_cache, v_cache, spec.k_scale,
                             spec.v_scale)
        q = q.index_select(0, inputs.last_tokens)
        return ops.paged_attention(q, k_cache, v_cache, inputs.of_last_tokens(), spec).flatten(1)
