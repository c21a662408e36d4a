"""Qwen3: Llama with an RMS norm of each head of q and k before the rotation."""

from __future__ import annotations

from quire.engine.layers.self_attention import HeadNorms
from quire.engine.models.llama import Llama
from quire.engine.weights.checkpoint import View


class Qwen3(Llama):
    def make_head_norms(self, view: View) -> HeadNorms:
        return HeadNorms(view, self.head_dim, self.eps)
