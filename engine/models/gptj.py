"""GPT-J: attention and MLP side by side behind one norm, neighbouring dimensions rotated, a head with a bias."""

from __future__ import annotations

from quire.engine.errors import ConfigError
from quire.engine.layers import qkv
from quire.engine.layers.decoder_layer import DecoderLayer, ParallelLayer
from quire.engine.layers.mlp import MLP
from quire.engine.layers.rotary import cos_sin_table
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import Rotary


class GPTJ(DecoderModel):
    names = Names(body="transformer", embedding="wte", layers="h", norm="ln_f")
    ignorable = r"\.attn\.(masked_)?bias$"
    head_bias = True

    def prepare(self, view: View) -> None:
        hf = self.config.hf
        width = hf.get("rotary_dim") or self.head_dim
        if width > self.head_dim:
            raise ConfigError(f"{self.config.path}: rotary_dim {width} is more than a head has, {self.head_dim}")
        table = cos_sin_table(hf["rope_parameters"], width, self.max_model_len, view.device)
        self.rotary = Rotary(table, "interleaved")

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        projections = Projections(qkv.separate(self.heads), "out_proj")
        attention = SelfAttention(view.sub("attn"), size, self.heads, projections, self.paged(i, self.rotary),
                                  self.parallel)
        mlp = MLP(view.sub("mlp"), size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="fc_in",
                  down="fc_out", bias=True)
        return ParallelLayer(self.make_norm(view.sub("ln_1")), attention, None, mlp, is_last=self.is_last_layer(i))
