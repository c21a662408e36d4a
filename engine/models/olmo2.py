"""OLMo 2 and 3: norms behind the blocks only, and of q and k over all heads at once; 3 has windows."""

from __future__ import annotations

from quire.engine.layers.decoder_layer import DecoderLayer
from quire.engine.layers.self_attention import WholeNorms
from quire.engine.models.llama import Llama
from quire.engine.weights.checkpoint import View


class Olmo2(Llama):
    def make_layer(self, i: int, view: View) -> DecoderLayer:
        return self.make_sandwich(i, view, None, "post_attention_layernorm", None, "post_feedforward_layernorm")

    def make_head_norms(self, view: View) -> WholeNorms:
        return WholeNorms(view, self.heads, self.eps, self.parallel)
