"""GPT-2: layer norms, learned positions, and matrices stored the other way round (Conv1D)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from quire.engine.layers import qkv
from quire.engine.layers.decoder_layer import DecoderLayer, PreNormLayer
from quire.engine.layers.mlp import MLP
from quire.engine.layers.self_attention import Projections, SelfAttention
from quire.engine.models.decoder import DecoderModel, Names, held
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part
from quire.kernels.attention_spec import AttentionSpec


class GPT2(DecoderModel):
    names = Names(body="transformer", embedding="wte", layers="h", norm="ln_f")
    ignorable = r"\.attn\.(masked_)?bias$"
    transposed = True

    def prepare(self, view: View) -> None:
        table = held(self.body(view).sub("wpe"), self.stage.is_first)
        self.positions = table.take("weight", (self.config.max_position_embeddings, self.hidden_size))

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.embedding(token_ids) + F.embedding(positions, self.positions)

    def attention_spec(self, i: int) -> AttentionSpec:
        hf, spec = self.config.hf, super().attention_spec(i)
        scale = spec.scale if hf.get("scale_attn_weights", True) else 1.0
        if hf.get("scale_attn_by_inverse_layer_idx", False):
            scale /= i + 1
        return replace(spec, scale=scale)

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        hf, size = self.config.hf, self.hidden_size
        projections = Projections(self.qkv_parts(), "c_proj", qkv_bias=True, out_bias=True, transposed=self.transposed)
        attention = SelfAttention(view.sub("attn"), size, self.heads, projections, self.paged(i, None), self.parallel)
        mlp = MLP(view.sub("mlp"), size, hf["intermediate_size"], hf["hidden_act"], self.parallel, up="c_fc",
                  down="c_proj", bias=True, transposed=self.transposed)
        return PreNormLayer(self.make_norm(view.sub("ln_1")), attention, self.make_norm(view.sub("ln_2")), mlp,
                            is_last=self.is_last_layer(i))

    def qkv_parts(self) -> list[Part]:
        return qkv.stacked(self.heads, "c_attn")
