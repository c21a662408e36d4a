"""The attention block of a decoder layer: one product for q, k and v, paged attention, one product out.

Refuses to know norms and residuals. Called by the models.
"""

from __future__ import annotations

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.attention.paged import PagedAttention
from quire.engine.division import ATTENTION_HEADS
from quire.engine.layers.linear import ColumnParallelLinear, Part, RowParallelLinear
from quire.engine.model_config import ModelConfig
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View


class SelfAttention:
    def __init__(self, view: View, config: ModelConfig, cos_sin: torch.Tensor, parallel: Parallel, *, qkv_bias: bool,
                 out_bias: bool) -> None:
        dim, num_heads, num_kv_heads = config.head_dim, config.num_heads, config.num_kv_heads
        heads = parallel.share(num_heads, ATTENTION_HEADS)
        kv_heads = parallel.share_kv_heads(num_kv_heads)
        features, kv_features = _scaled(heads, dim), _scaled(kv_heads, dim)
        self._qkv = ColumnParallelLinear(view, config.hidden_size, [
            Part("q_proj", num_heads * dim, features),
            Part("k_proj", num_kv_heads * dim, kv_features),
            Part("v_proj", num_kv_heads * dim, kv_features),
        ], bias=qkv_bias)
        self._out = RowParallelLinear(view.sub("o_proj"), num_heads * dim, config.hidden_size, features, parallel,
                                      bias=out_bias)
        self._attention = PagedAttention(heads.stop - heads.start, kv_heads.stop - kv_heads.start, dim, cos_sin)

    def __call__(self, x: torch.Tensor, inputs: AttentionInputs, kv_cache: tuple[torch.Tensor, torch.Tensor],
                 *, only_last: bool) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum; with `only_last` [seqs, hidden]."""
        return self._out(self._attention(self._qkv(x), inputs, kv_cache, only_last=only_last))


def _scaled(heads: slice, head_dim: int) -> slice:
    return slice(heads.start * head_dim, heads.stop * head_dim)
