"""min_tokens: stop tokens cannot be drawn before the output is so long. Of rows with a grammar, its masks say so."""

from __future__ import annotations

import numpy as np
import torch

from quire.engine.sampling.processor import Edited, EditedRows, places


class MinTokens:
    name = "min_tokens"

    def acts(self, row: Edited) -> bool:
        return row.is_too_short and bool(row.sampling.stop_token_ids) and not row.sampling.grammar

    def pack(self, rows: list[Edited]) -> dict[str, np.ndarray]:
        each = [row.sampling.stop_token_ids for row in rows]
        return {"places": places(rows, [len(ids) for ids in each]), "ids": np.concatenate(each).astype(np.int32)}

    def apply(self, logits: torch.Tensor, sent: dict[str, torch.Tensor], rows: EditedRows) -> None:
        logits.index_put_((sent["places"], sent["ids"]), logits.new_full((), -torch.inf))
