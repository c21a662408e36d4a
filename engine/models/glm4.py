"""GLM-4 (0414): norms before and behind each block, half of each head rotated, neighbouring dimensions together."""

from __future__ import annotations

from quire.engine.layers import qkv
from quire.engine.layers.decoder_layer import DecoderLayer
from quire.engine.layers.self_attention import Projections
from quire.engine.models.phi3 import Phi3
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import Style


class Glm4(Phi3):
    rotary_style: Style = "interleaved"

    def projections(self) -> Projections:
        return Projections(qkv.separate(self.heads), qkv_bias=bool(self.config.hf.get("attention_bias", True)))

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        return self.make_sandwich(i, view, "input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm",
                                  "post_mlp_layernorm")
