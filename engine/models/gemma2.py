"""Gemma 2: norms before and behind each block, windows in every other layer, scores and logits with a soft cap."""

from __future__ import annotations

import torch

from quire.engine.layers.decoder_layer import DecoderLayer, SandwichLayer
from quire.engine.models.gemma import Gemma
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import AttentionSpec


class Gemma2(Gemma):
    def attention_spec(self, i: int) -> AttentionSpec:
        hf, heads = self.config.hf, self.heads
        scale = (hf.get("query_pre_attn_scalar") or 256) ** -0.5
        return AttentionSpec(heads.num, heads.num_kv, heads.dim, scale, window=self.window(i),
                             softcap=hf.get("attn_logit_softcapping") or 0.0)

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        norms = [self.make_norm(view.sub(name)) for name in (
            "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")]
        return SandwichLayer(norms[0], self.make_attention(i, view.sub("self_attn")), norms[1], norms[2],
                             self.mlp_of(i, view), norms[3], self.parallel.all_reduce,
                             is_last=self.is_last_layer(i))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits, cap = super().logits(hidden), self.config.hf.get("final_logit_softcapping")
        return logits if not cap else torch.tanh(logits / cap) * cap
