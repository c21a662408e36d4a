"""OPT: layer norms, learned positions with an offset of two.

350m has its norms behind the blocks, and a narrow embedding. Galactica's variants leave out biases or the weights of
norms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.engine.layers import qkv
from quire.engine.layers.decoder_layer import DecoderLayer, PostNormLayer, PreNormLayer
from quire.engine.layers.load import load_product
from quire.engine.layers.mlp import MLP
from quire.engine.layers.norm import LayerNorm
from quire.engine.layers.product import Product
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names, held
from quire.engine.weights.checkpoint import ALL, View
from quire.engine.weights.scheme import Part

_OFFSET = 2  # of learned positions: the first two rows are nobody's


class OPT(DecoderModel):
    names = Names(body="model.decoder", norm="final_layer_norm")

    def prepare(self, view: View) -> None:
        hf, body = self.config.hf, self.body(view)
        self.embedding_size = hf.get("word_embed_proj_dim") or self.hidden_size
        table = held(body.sub("embed_positions"), self.stage.is_first)
        self.positions = table.take("weight", (self.config.max_position_embeddings + _OFFSET, self.hidden_size))
        self.project_in: Product | None = None
        self.project_out: Product | None = None
        if self.embedding_size != self.hidden_size:
            wide, narrow = self.hidden_size, self.embedding_size
            into, out = (held(body.sub(name), here) for name, here in (("project_in", self.stage.is_first),
                                                                       ("project_out", self.stage.is_last)))
            self.project_in = load_product(into, [Part("", wide, ALL)], narrow, None)
            self.project_out = load_product(out, [Part("", narrow, ALL)], wide, None)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.embedding(token_ids)
        if self.project_in is not None:
            x = self.project_in(x)
        return x + F.embedding(positions + _OFFSET, self.positions)

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if self.project_out is None else self.project_out(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(hidden))

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        has_bias = bool(hf.get("enable_bias", True))
        projections = Projections(qkv.separate(self.heads), "out_proj", has_bias, has_bias)
        attention = SelfAttention(view.sub("self_attn"), size, self.heads, projections, self.paged(i, None),
                                  self.parallel)
        mlp = MLP(view, size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="fc1", down="fc2",
                  bias=has_bias)
        norms = self.make_norm(view.sub("self_attn_layer_norm")), self.make_norm(view.sub("final_layer_norm"))
        if hf.get("do_layer_norm_before", True):
            return PreNormLayer(norms[0], attention, norms[1], mlp, is_last=self.is_last_layer(i))
        return PostNormLayer(attention, norms[0], mlp, norms[1], is_last=self.is_last_layer(i))

    def make_norm(self, view: View) -> LayerNorm:
        return LayerNorm(view, self.hidden_size, 1e-5, self.parallel,
                         affine=bool(self.config.hf.get("layer_norm_elementwise_affine", True)))

    def final_norm(self, view: View) -> LayerNorm | None:
        hf = self.config.hf
        has_one = hf.get("do_layer_norm_before", True) and not hf.get("_remove_final_layer_norm", False)
        return self.make_norm(view) if has_one else None
