"""SmolLM3: Llama in which every fourth layer knows no positions."""

from __future__ import annotations

from quire.engine.models.llama import Llama
from quire.kernels.attention_spec import Rotary


class SmolLM3(Llama):
    def rotary_of(self, i: int) -> Rotary | None:
        return self.rotary if self.config.hf["no_rope_layers"][i] else None
