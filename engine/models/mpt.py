"""MPT: ALiBi with slopes in an order of its own, layer norms without biases, values of q, k and v clipped."""

from __future__ import annotations

from dataclasses import replace

from quire.engine.layers import alibi, qkv
from quire.engine.layers.decoder_layer import DecoderLayer, PreNormLayer
from quire.engine.layers.mlp import MLP
from quire.engine.layers.norm import LayerNorm
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import AttentionSpec


class MPT(DecoderModel):
    names = Names(body="transformer", embedding="wte", layers="blocks", norm="norm_f")

    def prepare(self, view: View) -> None:
        self.of_attention = self.config.hf.get("attn_config") or {}
        largest = self.of_attention.get("alibi_bias_max") or 8
        self.slopes = alibi.mpt_slopes(self.heads.num, largest).to(view.device)

    def attention_spec(self, i: int) -> AttentionSpec:
        spec = super().attention_spec(i)
        return replace(spec, scale=self.of_attention.get("softmax_scale") or spec.scale)

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        attention = SelfAttention(view.sub("attn"), size, self.heads,
                                  Projections(qkv.stacked(self.heads, "Wqkv"), "out_proj"), self.paged(i, None),
                                  self.parallel, clip=self.of_attention.get("clip_qkv") or None)
        mlp = MLP(view.sub("ffn"), size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="up_proj",
                  down="down_proj", bias=False)
        return PreNormLayer(self.make_norm(view.sub("norm_1")), attention, self.make_norm(view.sub("norm_2")), mlp,
                            is_last=self.is_last_layer(i))

    def make_norm(self, view: View) -> LayerNorm:
        return LayerNorm(view, self.hidden_size, self.config.hf.get("layer_norm_eps", 1e-5), self.parallel, bias=False)
