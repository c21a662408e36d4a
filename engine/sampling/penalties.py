"""Repetition, presence and frequency penalties, of the tokens that prompt and output have."""

from __future__ import annotations

import numpy as np
import torch

from quire.engine.sampling.processor import Edited, EditedRows, places
from quire.kernels import ops


class Penalties:
    name = "penalties"

    def acts(self, row: Edited) -> bool:
        s = row.sampling
        return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0

    def pack(self, rows: list[Edited]) -> dict[str, np.ndarray]:
        numbers = [(row.sampling.repetition_penalty, row.sampling.presence_penalty, row.sampling.frequency_penalty)
                   for row in rows]
        return {"places": places(rows, [1] * len(rows)), "numbers": np.array(numbers, np.float32).T}

    def apply(self, logits: torch.Tensor, sent: dict[str, torch.Tensor], rows: EditedRows) -> None:
        where = sent["places"]
        part = logits[where]
        ops.apply_penalties(part, rows.tokens, rows.row_ids[where], rows.num_prompt[where], rows.positions[where],
                            *sent["numbers"])
        logits[where] = part
