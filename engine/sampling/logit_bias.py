"""logit_bias: numbers that are added to the logits of some ids."""

from __future__ import annotations

import numpy as np
import torch

from quire.engine.sampling.processor import Edited, EditedRows, places


class LogitBias:
    name = "logit_bias"

    def acts(self, row: Edited) -> bool:
        return bool(row.sampling.logit_bias_ids)

    def pack(self, rows: list[Edited]) -> dict[str, np.ndarray]:
        ids = [np.frombuffer(row.sampling.logit_bias_ids, np.int32) for row in rows]
        values = [np.frombuffer(row.sampling.logit_biases, np.float32) for row in rows]
        return {"places": places(rows, [len(each) for each in ids]), "ids": np.concatenate(ids),
                "values": np.concatenate(values)}

    def apply(self, logits: torch.Tensor, sent: dict[str, torch.Tensor], rows: EditedRows) -> None:
        logits.index_put_((sent["places"], sent["ids"]), sent["values"], accumulate=True)
