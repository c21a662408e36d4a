"""Llama 1 to 3, SmolLM2 and their look-alikes: RMS norms before attention and gated MLP, rotary positions.

Families that differ in a bias or a norm subclass `Llama` in a file of their own.
"""

from __future__ import annotations

import torch

from quire.engine.layers import qkv
from quire.engine.layers.decoder_layer import Block, DecoderLayer, PreNormLayer, SandwichLayer
from quire.engine.layers.mlp import GatedMLP
from quire.engine.layers.norm import Norm, RMSNorm
from quire.engine.layers.rotary import cos_sin_table
from quire.engine.layers.self_attention import Projections, QKNorms, SelfAttention
from quire.engine.models.decoder import DecoderModel
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import Rotary, Style

DEFAULT_EPS = 1e-6


class Llama(DecoderModel):
    mlp_name = "mlp"
    rotary_style: Style = "half"
    query_factors: torch.Tensor | None = None  # [positions]

    def prepare(self, view: View) -> None:
        hf = self.config.hf
        self.eps = hf.get("rms_norm_eps", DEFAULT_EPS)
        rope = hf["rope_parameters"]
        width = int(self.head_dim * rope["partial_rotary_factor"])
        self.rotary = Rotary(cos_sin_table(rope, width, self.max_model_len, view.device,
                                           _frequency_divisors(view, width)), self.rotary_style)
        self.local_rotary = self.rotary  # of layers with a window
        if local := hf.get("local_rope_parameters"):
            self.local_rotary = Rotary(cos_sin_table(local, width, self.max_model_len, view.device), self.rotary_style)

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        return PreNormLayer(self.make_norm(view.sub("input_layernorm")), self.make_attention(i, view.sub("self_attn")),
                            self.make_norm(view.sub("post_attention_layernorm")), self.mlp_of(i, view),
                            is_last=self.is_last_layer(i))

    def make_sandwich(self, i: int, view: View, input_norm: str | None, attention_norm: str, mlp_norm: str | None,
                      output_norm: str) -> DecoderLayer:
        """A layer with norms behind its blocks, and before them where these have names."""
        def inner(name: str | None) -> Norm | None:
            return None if name is None else self.make_norm(view.sub(name))

        return SandwichLayer(inner(input_norm), self.make_attention(i, view.sub("self_attn")),
                             self.make_norm(view.sub(attention_norm)), inner(mlp_norm), self.mlp_of(i, view),
                             self.make_norm(view.sub(output_norm)), self.parallel.all_reduce,
                             is_last=self.is_last_layer(i))

    def make_norm(self, view: View) -> RMSNorm:
        return RMSNorm(view, self.hidden_size, self.eps, self.parallel)

    def make_attention(self, i: int, view: View) -> SelfAttention:
        return SelfAttention(view, self.hidden_size, self.heads, self.projections(), self.paged(i, self.rotary_of(i)),
                             self.parallel, norms=self.make_head_norms(view), query_factors=self.query_factors)

    def projections(self) -> Projections:
        has_bias = bool(self.config.hf.get("attention_bias", False))
        return Projections(qkv.separate(self.heads), qkv_bias=has_bias, out_bias=has_bias)

    def rotary_of(self, i: int) -> Rotary | None:
        return self.rotary if self.window(i) is None else self.local_rotary

    def make_head_norms(self, view: View) -> QKNorms | None:
        return None

    def mlp_of(self, i: int, view: View) -> Block:
        return self.make_mlp(i, view.sub(self.mlp_name))

    def make_mlp(self, i: int, view: View) -> Block:
        hf = self.config.hf
        return GatedMLP(view, self.hidden_size, hf["intermediate_size"], hf.get("hidden_act", "silu"), self.parallel,
                        bias=bool(hf.get("mlp_bias", False)))


def _frequency_divisors(view: View, rotary_dim: int) -> torch.Tensor | None:
    """GGUF's form of llama3 rope scaling."""
    if not view.has("rope_freqs.weight"):
        return None
    # float32 on the CPU, wherever and whatever the model is
    return view.take("rope_freqs.weight", (rotary_dim // 2,), out=torch.empty(rotary_dim // 2))
