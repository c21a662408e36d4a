"""SmolLM3: Llama in which every fourth layer knows no positions."""

from __future__ import annotations

from quire.engine.models.llama import Llama
from quire.kernels.attention_spec import Rotary


class SmolLM3(Llama):
    def rotary_of(self, i: int) -> Rotary | None:
        hf = self.config.hf
        if hf.get("no_rope_layers"):  # 1 where there is a rotation
            return self.rotary if hf["no_rope_layers"][i] else None
        return self.rotary if (i + 1) % hf.get("no_rope_layer_interval", 4) else None
