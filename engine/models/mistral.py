"""Mistral: Llama without biases; early ones attend through a sliding window."""

from __future__ import annotations

from typing import Any

from quire.engine.model_config import ModelConfig
from quire.engine.models.llama import Llama
from quire.engine.models.sliding_window import refuse_short_window
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View


class Mistral(Llama):
    def __init__(self, config: ModelConfig, max_model_len: int, view: View, parallel: Parallel) -> None:
        refuse_short_window(config, max_model_len, config.hf.get("sliding_window"))
        super().__init__(config, max_model_len, view, parallel)

    @staticmethod
    def attention_biases(hf: dict[str, Any]) -> tuple[bool, bool]:
        return False, False
