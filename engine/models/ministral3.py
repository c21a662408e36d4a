"""Ministral 3: Mistral whose queries grow with position beyond the context that the model was first trained on."""

from __future__ import annotations

import torch

from quire.engine.models.mistral import Mistral
from quire.engine.weights.checkpoint import View


class Ministral3(Mistral):
    def prepare(self, view: View) -> None:
        super().prepare(view)
        rope = self.config.hf["rope_parameters"]
        positions = torch.arange(self.max_model_len, dtype=torch.float32)
        steps = torch.floor(positions / rope["original_max_position_embeddings"])
        self.query_factors = (1 + rope.get("llama_4_scaling_beta", 0.0) * torch.log1p(steps)).to(view.device)
