"""Falcon: 7B (one KV head, one norm for both blocks), 40B and 180B (groups, a norm each), and RW (ALiBi, serial).

RW's scores are divided by sqrt(head_dim) after ALiBi was added, so its slopes are too.
"""

from __future__ import annotations

from quire.engine.layers import alibi, qkv
from quire.engine.layers.decoder_layer import DecoderLayer, ParallelLayer, PreNormLayer
from quire.engine.layers.mlp import MLP
from quire.engine.layers.rotary import cos_sin_table
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import Rotary


class Falcon(DecoderModel):
    names = Names(body="transformer", embedding="word_embeddings", layers="h", norm="ln_f")

    def prepare(self, view: View) -> None:
        hf = self.config.hf
        self.rotary = None
        if hf.get("alibi", False):
            self.slopes = (alibi.slopes(self.heads.num) * self.head_dim ** -0.5).to(view.device)
        else:
            self.rotary = Rotary(cos_sin_table(hf["rope_parameters"], self.head_dim, self.max_model_len, view.device))

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        has_bias = bool(hf.get("bias", False))
        is_stacked = hf.get("multi_query", True) and not hf["new_decoder_architecture"]
        layout = qkv.stacked if is_stacked else qkv.grouped
        projections = Projections(layout(self.heads, "query_key_value"), "dense", has_bias, has_bias)
        attention = SelfAttention(view.sub("self_attention"), size, self.heads, projections,
                                  self.paged(i, self.rotary), self.parallel)
        mlp = MLP(view.sub("mlp"), size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="dense_h_to_4h",
                  down="dense_4h_to_h", bias=has_bias)
        is_last = self.is_last_layer(i)
        if hf["new_decoder_architecture"] and (hf.get("num_ln_in_parallel_attn") or 2) == 2:
            return ParallelLayer(self.make_norm(view.sub("ln_attn")), attention, self.make_norm(view.sub("ln_mlp")),
                                 mlp, is_last=is_last)
        input_norm = self.make_norm(view.sub("input_layernorm"))
        if hf["new_decoder_architecture"] or hf["parallel_attn"]:
            return ParallelLayer(input_norm, attention, None, mlp, is_last=is_last)
        return PreNormLayer(input_norm, attention, self.make_norm(view.sub("post_attention_layernorm")), mlp,
                            is_last=is_last)
