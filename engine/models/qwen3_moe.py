"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the MLP, in all layers or in every so many."""

from __future__ import annotations

from quire.engine.layers.decoder_layer import Block
from quire.engine.layers.experts import Experts, Routing
from quire.engine.models.qwen3 import Qwen3
from quire.engine.weights.checkpoint import View


class Qwen3Moe(Qwen3):
    def make_mlp(self, i: int, view: View) -> Block:
        hf = self.config.hf
        if i in (hf.get("mlp_only_layers") or ()) or (i + 1) % hf.get("decoder_sparse_step", 1):
            return super().make_mlp(i, view)
        routing = Routing(hf.get("num_experts") or self.need("num_local_experts"), self.need("num_experts_per_tok"),
                          renormalize=bool(hf.get("norm_topk_prob", False)))
        return Experts(view, self.hidden_size, self.need("moe_intermediate_size"), hf.get("hidden_act", "silu"),
                       routing, self.parallel)
