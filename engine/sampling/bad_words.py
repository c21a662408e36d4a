"""bad_words: a token that would complete a forbidden sequence in the output cannot be drawn."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from quire.engine.sampling.processor import Edited, EditedRows, places


class BadWords:
    name = "bad_words"

    def acts(self, row: Edited) -> bool:
        return bool(row.sampling.bad_words)

    def pack(self, rows: list[Edited]) -> dict[str, np.ndarray]:
        width = max(_longest(row.sampling.bad_words) for row in rows)
        each = [_arrays(row.sampling.bad_words, width) for row in rows]
        return {
            "places": places(rows, [len(lasts) for _, lasts, _ in each]),
            "before": np.concatenate([before for before, _, _ in each]),
            "lasts": np.concatenate([lasts for _, lasts, _ in each]),
            "lengths": np.concatenate([lengths for _, _, lengths in each]),
        }

    def apply(self, logits: torch.Tensor, sent: dict[str, torch.Tensor], rows: EditedRows) -> None:
        where, before = sent["places"], sent["before"]
        position = rows.positions[where]
        back = torch.arange(-before.shape[1], 0, device=before.device)
        tokens = rows.tokens[rows.row_ids[where, None], (position[:, None] + back).clamp_(min=0)]
        fits = position - sent["lengths"] >= rows.num_prompt[where]
        met = fits & ((tokens == before) | (before < 0)).all(1)
        # A sum: of several sequences that end in one token, any that is met takes it away.
        taken = torch.where(met, -torch.inf, 0.0)
        logits.index_put_((where, sent["lasts"]), taken, accumulate=True)


@lru_cache(1024)
def _longest(bad_words: tuple[tuple[int, ...], ...]) -> int:
    """Ids before the last of a sequence, at most."""
    return max(map(len, bad_words)) - 1


@lru_cache(1024)
def _arrays(bad_words: tuple[tuple[int, ...], ...], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each sequence: what comes before its last id, padded in front with -1 to `width`, as it is compared with the
    tokens just before the one to be drawn; that id; how many come before."""
    lengths = np.array([len(ids) - 1 for ids in bad_words], np.int32)
    before = np.full((len(bad_words), width), -1, np.int32)
    for row, ids in zip(before, bad_words):
        row[width - len(ids) + 1:] = ids[:-1]
    return before, np.array([ids[-1] for ids in bad_words], np.int32), lengths
