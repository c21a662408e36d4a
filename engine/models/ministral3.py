"""Ministral 3: Mistral whose queries grow with position beyond the context that the model was first trained on."""

from __future__ import annotations

import torch

from quire.engine.errors import ConfigError
from quire.engine.models.mistral import Mistral
from quire.engine.weights.checkpoint import View


class Ministral3(Mistral):
    def prepare(self, view: View) -> None:
        super().prepare(view)
        rope = self.config.hf["rope_parameters"]
        beta, original = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
        if not beta:
            return
        if not original:
            raise ConfigError(f"{self.config.path}: rope_parameters has llama_4_scaling_beta, and lacks "
                              "original_max_position_embeddings, from which on queries grow")
        steps = torch.floor(torch.arange(self.max_model_len, dtype=torch.float32) / original)
        self.query_factors = (1 + beta * torch.log1p(steps)).to(view.device)
