"""GPTBigCode (StarCoder): GPT-2 whose query heads share one KV head, with matrices stored the usual way."""

from __future__ import annotations

from quire.engine.layers import qkv
from quire.engine.models.gpt2 import GPT2
from quire.engine.weights.scheme import Part


class GPTBigCode(GPT2):
    transposed = False

    def qkv_parts(self) -> list[Part]:
        layout = qkv.stacked if self.config.hf["multi_query"] else qkv.grouped
        return layout(self.heads, "c_attn")
