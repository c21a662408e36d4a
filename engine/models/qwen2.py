"""Qwen2 and Qwen2.5: Llama with biases on q, k and v only."""

from __future__ import annotations

from quire.engine.layers import qkv
from quire.engine.layers.self_attention import Projections
from quire.engine.models.llama import Llama


class Qwen2(Llama):
    def projections(self) -> Projections:
        return Projections(qkv.separate(self.heads), qkv_bias=True)
