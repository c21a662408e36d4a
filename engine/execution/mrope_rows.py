"""M-RoPE's positions of the rows that have images: three of each token of a prompt up to its last image, and behind
that one number, by which a token's position differs from its place.

A text's token has three equal positions. An image's tokens have their frame's, row's and column's, counted from where
the image begins; the text behind goes on at the largest of these plus 1. Host only; which rows are whose is the plan's
business. Called by ModelRunner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quire.engine.execution.upload import Upload
from quire.engine.model_facts.vision import Grid
from quire.engine.plan import NewRow, StepPlan


class _Row(NamedTuple):
    positions: np.ndarray  # [3, tokens up to the end of the last image] int32
    delta: int  # of all tokens behind


class MRopeRows:
    def __init__(self, merge_size: int) -> None:
        self._merge_size = merge_size
        self._rows: dict[int, _Row] = {}  # those with images
        self._open: set[int] = set()  # those of them whose last image is not computed yet

    def enter(self, new_rows: list[NewRow]) -> None:
        for new in new_rows:
            if new.images:
                self._rows[new.row] = _positions(new.images, self._merge_size)
                self._open.add(new.row)
            else:
                self._rows.pop(new.row, None)
                self._open.discard(new.row)

    def differ(self, plan: StepPlan) -> bool:
        """Whether some token of the step turns by three positions, or by a delta that is not its row's."""
        if not self._open or self._open.isdisjoint(plan.rows):
            return False
        starts = dict(zip(plan.rows, plan.starts))
        computed = {row for row in self._open if starts.get(row, 0) >= self._rows[row].positions.shape[1]}
        self._open -= computed
        return not self._open.isdisjoint(plan.rows)

    def pack(self, plan: StepPlan, upload: Upload, *, differ: bool) -> None:
        if plan.new_rows:
            deltas = [self._rows[new.row].delta if new.images else 0 for new in plan.new_rows]
            upload.add("new_deltas", np.array(deltas, np.int32))
        if differ:
            upload.add("mrope_positions", np.concatenate(
                [self._of(*part) for part in zip(plan.rows, plan.starts, plan.num_tokens)], 1))

    def _of(self, row: int, start: int, num_tokens: int) -> np.ndarray:
        """[3, num_tokens] int32, from place `start` on."""
        places = np.tile(np.arange(start, start + num_tokens, dtype=np.int32), (3, 1))
        if row in self._rows:
            positions, delta = self._rows[row]
            places += np.int32(delta)
            stated = positions[:, start:start + num_tokens]
            places[:, :stated.shape[1]] = stated
        return places


def _positions(images: Sequence[tuple[int, Grid]], merge_size: int) -> _Row:
    """`images`: of each the place of its first token, and its grid in patches."""
    parts, end, next_position = [], 0, 0
    for first, (t, h, w) in images:
        text = first - end
        parts.append(np.tile(np.arange(next_position, next_position + text, dtype=np.int32), (3, 1)))
        next_position += text
        rows, columns = h // merge_size, w // merge_size
        parts.append(np.indices((t, rows, columns), np.int32).reshape(3, -1) + np.int32(next_position))
        next_position += max(t, rows, columns)
        end = first + t * rows * columns
    return _Row(np.concatenate(parts, 1), next_position - end)
