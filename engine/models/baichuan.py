"""Baichuan 1 and 2: Llama with q, k and v in one tensor; 13B has ALiBi; version 2 multiplies by a head of unit rows."""

from __future__ import annotations

import torch.nn.functional as F

from quire.engine.layers import alibi, qkv
from quire.engine.layers.load import load_weight
from quire.engine.layers.product import product
from quire.engine.layers.self_attention import Projections
from quire.engine.layers.vocab import VocabHead
from quire.engine.models.llama import Llama
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part
from quire.kernels.attention_spec import Rotary

_HIDDEN_OF_7B = 4096  # of both versions: what their own code decides by
_VOCAB_OF_2 = 125_696


class Baichuan(Llama):
    @property
    def has_alibi(self) -> bool:
        return self.hidden_size != _HIDDEN_OF_7B and self.config.architecture == "BaichuanForCausalLM"

    def prepare(self, view: View) -> None:
        super().prepare(view)
        if self.has_alibi:
            self.slopes = alibi.slopes(self.heads.num).to(view.device)

    def rotary_of(self, i: int) -> Rotary | None:
        return None if self.has_alibi else self.rotary

    def projections(self) -> Projections:
        return Projections(qkv.stacked(self.heads, "W_pack"))

    def make_head(self, view: View) -> VocabHead:
        if self.vocab_size != _VOCAB_OF_2:
            return super().make_head(view)
        rows = self.parallel.share_uneven(self.vocab_size)
        weight = load_weight(view, [Part("", self.vocab_size, rows)], self.hidden_size)
        if not weight.is_meta:
            weight = F.normalize(weight)
        return VocabHead(product(weight, cpu_weights=view.cpu_weights), self.vocab_size, self.parallel)
