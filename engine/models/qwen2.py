"""Qwen2 and Qwen2.5: Llama with biases on q, k and v only."""

from __future__ import annotations

from typing import Any

from quire.engine.model_config import ModelConfig
from quire.engine.models.llama import Llama
from quire.engine.models.sliding_window import refuse_short_window
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View


class Qwen2(Llama):
    def __init__(self, config: ModelConfig, max_model_len: int, view: View, parallel: Parallel) -> None:
        if config.hf.get("use_sliding_window", False):
            refuse_short_window(config, max_model_len, config.hf.get("sliding_window"))
        super().__init__(config, max_model_len, view, parallel)

    @staticmethod
    def attention_biases(hf: dict[str, Any]) -> tuple[bool, bool]:
        return True, False
