"""Gemma: Llama whose norms multiply by 1 + weight and whose embeddings are scaled by sqrt(hidden_size)."""

from __future__ import annotations

import torch

from quire.engine.layers.norm import RMSNorm
from quire.engine.models.llama import Llama
from quire.engine.weights.checkpoint import View


class Gemma(Llama):
    def make_norm(self, view: View) -> RMSNorm:
        return RMSNorm(view, self.hidden_size, self.eps, self.parallel, one_plus=True)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # The factor is rounded to the model's dtype, as where these models were trained.
        factor = torch.tensor(self.hidden_size ** 0.5, dtype=self.dtype).item()
        return self.embedding(token_ids) * factor
