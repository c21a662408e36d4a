"""BLOOM: ALiBi, a norm behind the embedding, q, k and v head by head in one tensor."""

from __future__ import annotations

import torch

from quire.engine.errors import ConfigError
from quire.engine.layers import alibi, qkv
from quire.engine.layers.decoder_layer import DecoderLayer, PreNormLayer
from quire.engine.layers.mlp import MLP
from quire.engine.layers.norm import LayerNorm
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names, held
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import AttentionSpec


class Bloom(DecoderModel):
    names = Names(body="transformer", embedding="word_embeddings", layers="h", norm="ln_f")

    def prepare(self, view: View) -> None:
        if self.config.hf.get("apply_residual_connection_post_layernorm", False):
            raise ConfigError(f"{self.config.path}: apply_residual_connection_post_layernorm is not supported")
        self.slopes = alibi.slopes(self.heads.num).to(view.device)
        self.embedding_norm = self.final_norm(held(self.body(view).sub("word_embeddings_layernorm"),
                                                   self.stage.is_first))

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.embedding_norm(self.embedding(token_ids))

    def attention_spec(self, i: int) -> AttentionSpec:
        heads = self.heads
        return AttentionSpec(heads.num, heads.num_kv, heads.dim, heads.dim ** -0.5, slopes=self.slopes)

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        projections = Projections(qkv.grouped(self.heads, "query_key_value"), "dense", True, True)
        attention = SelfAttention(view.sub("self_attention"), size, self.heads, projections, self.paged(i, None),
                                  self.parallel)
        mlp = MLP(view.sub("mlp"), size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="dense_h_to_4h",
                  down="dense_4h_to_h", bias=True)
        return PreNormLayer(self.final_norm(view.sub("input_layernorm")), attention,
                            self.final_norm(view.sub("post_attention_layernorm")), mlp, is_last=self.is_last_layer(i))

    def final_norm(self, view: View) -> LayerNorm:
        return LayerNorm(view, self.hidden_size, self.config.hf.get("layer_norm_eps", 1e-5), self.parallel)
