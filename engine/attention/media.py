"""The images of a step: which of its tokens are theirs, and what stands there instead of an embedding.

Filled by `quire.engine.execution.feature_rows`; read by the models, between their layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StepFeatures:
    places: torch.Tensor  # [n] int32, tokens of the step
    features: torch.Tensor  # [n, hidden * (1 + levels)]: for the embedding, then for each level of DeepStack

    def put(self, hidden: torch.Tensor) -> None:
        """Writes the features over the embeddings of the images' tokens. hidden: [tokens, hidden], changed in place."""
        hidden.index_copy_(0, self.places.long(), self.features[:, :hidden.shape[1]])

    def add(self, hidden: torch.Tensor, level: int) -> None:
        """Adds the features of that level of DeepStack. hidden: as above."""
        width = hidden.shape[1]
        hidden.index_add_(0, self.places, self.features[:, (level + 1) * width:(level + 2) * width])
