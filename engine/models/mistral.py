"""Mistral and Ministral: Llama without biases; early ones attend through a sliding window."""

from __future__ import annotations

from quire.engine.layers import qkv
from quire.engine.layers.self_attention import Projections
from quire.engine.models.llama import Llama


class Mistral(Llama):
    def projections(self) -> Projections:
        return Projections(qkv.separate(self.heads))
