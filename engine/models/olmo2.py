"""OLMo 2 and 3: norms behind the blocks only, and of q and k over all heads at once; 3 has windows."""

from __future__ import annotations

from quire.engine.layers.decoder_layer import DecoderLayer, SandwichLayer
from quire.engine.layers.rotary import cos_sin_table
from quire.engine.layers.self_attention import WholeNorms
from quire.engine.models.llama import Llama
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import Rotary


class Olmo2(Llama):
    def make_layer(self, i: int, view: View) -> DecoderLayer:
        return SandwichLayer(None, self.make_attention(i, view.sub("self_attn")),
                             self.make_norm(view.sub("post_attention_layernorm")), None,
                             self.mlp_of(i, view), self.make_norm(view.sub("post_feedforward_layernorm")),
                             self.parallel.all_reduce, is_last=self.is_last_layer(i))

    def make_head_norms(self, view: View) -> WholeNorms:
        return WholeNorms(view, self.heads, self.eps, self.parallel)


class Olmo3(Olmo2):
    def prepare(self, view: View) -> None:
        super().prepare(view)
        local = self.config.hf["local_rope_parameters"]
        self.local_rotary = Rotary(cos_sin_table(local, self.head_dim, self.max_model_len, view.device))

    def rotary_of(self, i: int) -> Rotary | None:
        return self.rotary if self.window(i) is None else self.local_rotary
