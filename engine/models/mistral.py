"""Mistral: Llama without biases; early ones attend through a sliding window."""

from __future__ import annotations

from typing import Any

from quire.engine.models.llama import Llama
from quire.engine.models.sliding_window import refuse_short_window
from quire.engine.weights.checkpoint import View


class Mistral(Llama):
    def prepare(self, view: View) -> None:
        refuse_short_window(self.config, self.max_model_len, self.config.hf.get("sliding_window"))
        super().prepare(view)

    @staticmethod
    def attention_biases(hf: dict[str, Any]) -> tuple[bool, bool]:
        return False, False
