"""allowed_token_ids: no other id can be drawn."""

from __future__ import annotations

import numpy as np
import torch

from quire.engine.sampling.processor import Edited, EditedRows, places


class AllowedIds:
    name = "allowed_ids"

    def acts(self, row: Edited) -> bool:
        return bool(row.sampling.allowed_token_ids)

    def pack(self, rows: list[Edited]) -> dict[str, np.ndarray]:
        each = [np.frombuffer(row.sampling.allowed_token_ids, np.int32) for row in rows]
        return {"rows": places(rows, [1] * len(rows)), "places": places(rows, [len(ids) for ids in each]),
                "ids": np.concatenate(each)}

    def apply(self, logits: torch.Tensor, sent: dict[str, torch.Tensor], rows: EditedRows) -> None:
        kept = logits[sent["places"], sent["ids"]]
        logits.index_fill_(0, sent["rows"].long(), -torch.inf)
        logits.index_put_((sent["places"], sent["ids"]), kept)
