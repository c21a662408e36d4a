"""BLOOM: ALiBi, a norm behind the embedding, q, k and v head by head in one tensor."""

from __future__ import annotations

import torch

from quire.engine.layers import alibi, qkv
from quire.engine.layers.decoder_layer import DecoderLayer, NormedResidualLayer, PreNormLayer
from quire.engine.layers.mlp import MLP
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names, held
from quire.engine.weights.checkpoint import View


class Bloom(DecoderModel):
    names = Names(body="transformer", embedding="word_embeddings", layers="h", norm="ln_f")

    def prepare(self, view: View) -> None:
        self.slopes = alibi.slopes(self.heads.num).to(view.device)
        self.embedding_norm = self.make_norm(held(self.body(view).sub("word_embeddings_layernorm"),
                                                  self.stage.is_first))

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.embedding_norm(self.embedding(token_ids))

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        projections = Projections(qkv.grouped(self.heads, "query_key_value"), "dense", True, True)
        attention = SelfAttention(view.sub("self_attention"), size, self.heads, projections, self.paged(i, None),
                                  self.parallel)
        mlp = MLP(view.sub("mlp"), size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="dense_h_to_4h",
                  down="dense_4h_to_h", bias=True)
        form = NormedResidualLayer if hf.get("apply_residual_connection_post_layernorm", False) else PreNormLayer
        return form(self.make_norm(view.sub("input_layernorm")), attention,
                    self.make_norm(view.sub("post_attention_layernorm")), mlp, is_last=self.is_last_layer(i))
