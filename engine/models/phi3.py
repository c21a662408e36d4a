"""Phi-3, 3.5 and 4: Llama with fused projections and, for long contexts, longrope."""

from __future__ import annotations

from quire.engine.layers import qkv
from quire.engine.layers.mlp import GatedMLP
from quire.engine.layers.self_attention import Projections
from quire.engine.models.llama import Llama
from quire.engine.weights.checkpoint import View


class Phi3(Llama):
    def projections(self) -> Projections:
        return Projections(qkv.stacked(self.heads, "qkv_proj"))

    def make_mlp(self, i: int, view: View) -> GatedMLP:
        hf = self.config.hf
        return GatedMLP(view, self.hidden_size, hf["intermediate_size"], hf.get("hidden_act", "silu"), self.parallel,
                        bias=False, fused="gate_up_proj")
