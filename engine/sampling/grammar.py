"""Structured output: what the row's grammar does not allow next cannot be drawn."""

from __future__ import annotations

import numpy as np
import torch

from quire.engine.sampling.processor import Edited, EditedRows, places
from quire.kernels import ops


class Grammar:
    name = "grammar"

    def acts(self, row: Edited) -> bool:
        return bool(row.sampling.grammar)

    def pack(self, rows: list[Edited]) -> dict[str, np.ndarray]:
        masks = [row.following.mask for row in rows if row.following is not None]
        return {"places": places(rows, [1] * len(rows)), "masks": np.stack(masks)}

    def apply(self, logits: torch.Tensor, sent: dict[str, torch.Tensor], rows: EditedRows) -> None:
        ops.mask_tokens(logits, sent["places"], sent["masks"])
