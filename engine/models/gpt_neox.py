"""GPT-NeoX, Pythia: q, k and v head by head in one tensor, part of each head rotated, attention beside the MLP."""

from __future__ import annotations

from quire.engine.layers import qkv
from quire.engine.layers.decoder_layer import DecoderLayer, ParallelLayer, PreNormLayer
from quire.engine.layers.mlp import MLP
from quire.engine.layers.rotary import cos_sin_table
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import Rotary


class GPTNeoX(DecoderModel):
    names = Names(body="gpt_neox", embedding="embed_in", norm="final_layer_norm", head="embed_out")
    ignorable = r"\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$"

    def prepare(self, view: View) -> None:
        rope = self.config.hf["rope_parameters"]
        width = int(self.head_dim * rope["partial_rotary_factor"])
        self.rotary = Rotary(cos_sin_table(rope, width, self.max_model_len, view.device))

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        has_bias = bool(hf.get("attention_bias", True))
        projections = Projections(qkv.grouped(self.heads, "query_key_value"), "dense", has_bias, has_bias)
        attention = SelfAttention(view.sub("attention"), size, self.heads, projections, self.paged(i, self.rotary),
                                  self.parallel)
        mlp = MLP(view.sub("mlp"), size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="dense_h_to_4h",
                  down="dense_4h_to_h", bias=True)
        form = ParallelLayer if hf.get("use_parallel_residual", True) else PreNormLayer
        return form(self.make_norm(view.sub("input_layernorm")), attention,
                    self.make_norm(view.sub("post_attention_layernorm")), mlp, is_last=self.is_last_layer(i))
