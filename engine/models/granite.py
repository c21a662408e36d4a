"""Granite: Llama with four factors: of embeddings, scores, what blocks add to the residual, and logits."""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.engine.layers.decoder_layer import DecoderLayer, ScaledLayer
from quire.engine.models.llama import Llama
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import AttentionSpec


class Granite(Llama):
    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.embedding(token_ids) * self.config.hf.get("embedding_multiplier", 1.0)

    def attention_spec(self, i: int) -> AttentionSpec:
        return replace(super().attention_spec(i), scale=self.config.hf.get("attention_multiplier", 1.0))

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        return ScaledLayer(self.make_norm(view.sub("input_layernorm")), self.make_attention(i, view.sub("self_attn")),
                           self.make_norm(view.sub("post_attention_layernorm")), self.mlp_of(i, view),
                           factor=self.config.hf.get("residual_multiplier", 1.0), is_last=self.is_last_layer(i))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden) / self.config.hf.get("logits_scaling", 1.0)
