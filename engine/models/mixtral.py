"""Mixtral: Mistral with a mixture of experts in place of each MLP."""

from __future__ import annotations

from quire.engine.layers.decoder_layer import Block
from quire.engine.layers.experts import Experts, Routing
from quire.engine.models.mistral import Mistral
from quire.engine.weights.checkpoint import View


class Mixtral(Mistral):
    mlp_name = "block_sparse_moe"

    def make_mlp(self, i: int, view: View) -> Block:
        hf = self.config.hf
        routing = Routing(self.need("num_local_experts"), self.need("num_experts_per_tok"))
        return Experts(view, self.hidden_size, hf["intermediate_size"], hf.get("hidden_act", "silu"), routing,
                       self.parallel, names=("w1", "w3", "w2"))
