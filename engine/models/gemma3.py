"""Gemma 3, text: Gemma 2 with norms of q and k; layers with a window turn by a base of their own."""

from __future__ import annotations

from quire.engine.layers.rotary import cos_sin_table
from quire.engine.layers.self_attention import HeadNorms
from quire.engine.models.gemma2 import Gemma2
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import Rotary


class Gemma3(Gemma2):
    def prepare(self, view: View) -> None:
        super().prepare(view)
        local = self.config.hf["local_rope_parameters"]
        self.local_rotary = Rotary(cos_sin_table(local, self.head_dim, self.max_model_len, view.device))

    def rotary_of(self, i: int) -> Rotary | None:
        return self.rotary if self.window(i) is None else self.local_rotary

    def make_head_norms(self, view: View) -> HeadNorms:
        return HeadNorms(view, self.head_dim, self.eps, one_plus=True)
