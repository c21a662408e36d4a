"""Gemma 2: norms before and behind each block, windows in every other layer, scores and logits with a soft cap."""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.engine.layers.decoder_layer import DecoderLayer
from quire.engine.models.gemma import Gemma
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import AttentionSpec


class Gemma2(Gemma):
    def attention_spec(self, i: int) -> AttentionSpec:
        hf = self.config.hf
        return replace(super().attention_spec(i), scale=(hf.get("query_pre_attn_scalar") or 256) ** -0.5,
                       softcap=hf.get("attn_logit_softcapping") or 0.0)

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        return self.make_sandwich(i, view, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                                  "post_feedforward_layernorm")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits, cap = super().logits(hidden), self.config.hf.get("final_logit_softcapping")
        return logits if not cap else torch.tanh(logits / cap) * cap
