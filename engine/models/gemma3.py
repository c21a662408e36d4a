"""Gemma 3, text: Gemma 2 with norms of q and k; layers with a window turn by a base of their own."""

from __future__ import annotations

from quire.engine.layers.self_attention import HeadNorms
from quire.engine.models.gemma2 import Gemma2
from quire.engine.weights.checkpoint import View


class Gemma3(Gemma2):
    def make_head_norms(self, view: View) -> HeadNorms:
        return HeadNorms(view, self.head_dim, self.eps, one_plus=True)
