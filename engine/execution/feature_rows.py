"""The features of images on one rank: rows of numbers, a row a token, made by the vision tower from files of pixels.

Which image is in which rows the plan says, on all ranks alike (`engine/scheduling/feature_cache.py`). Called by
ModelRunner.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch

from quire.engine.attention.media import StepFeatures
from quire.engine.execution.upload import Upload
from quire.engine.layers.vision.tower import Tower
from quire.engine.plan import Encode, StepPlan

_MOST_REHEARSED = 1024  # tokens of an image: what a tower allocates grows with all images' tokens together


class FeatureRows:
    def __init__(self, tower: Tower, num_rows: int, *, one_by_one: bool) -> None:
        """`one_by_one`: no image shares a batch, so that its features are the same to the bit in any company."""
        self._tower = tower
        self._rows = torch.empty(num_rows, tower.facts.feature_width, dtype=tower.dtype, device=tower.device)
        self._one_by_one = one_by_one

    def encode(self, encodes: list[Encode]) -> None:
        """Raises OSError where a file cannot be read any more."""
        for batch in [[encode] for encode in encodes] if self._one_by_one else [encodes]:
            features = self._tower(self._pixels(batch), [encode.grid for encode in batch])
            counts = [self._tower.facts.num_tokens(encode.grid) for encode in batch]
            for encode, count, part in zip(batch, counts, features.split(counts)):
                self._rows[encode.first_row:encode.first_row + count] = part

    def rehearse(self, num_tokens: int | None = None) -> None:
        """A batch of nothing, as large as there may be: what it allocates is measured, and stays with the allocator.

        Of fewer `num_tokens` it uses the same kernels.
        """
        left = num_tokens = min(num_tokens or len(self._rows), len(self._rows))
        grids = []
        while left:
            rows = math.isqrt(min(left, _MOST_REHEARSED))
            columns = min(left, _MOST_REHEARSED) // rows
            grids.append((1, rows * self._tower.facts.merge_size, columns * self._tower.facts.merge_size))
            left -= rows * columns
        pixels = torch.zeros(sum(map(math.prod, grids)), self._tower.facts.patch_values, device=self._tower.device)
        self._rows[:num_tokens] = self._tower(pixels, grids)

    def pack(self, plan: StepPlan, upload: Upload) -> None:
        if plan.media_places:
            starts = np.cumsum([0, *plan.num_tokens[:-1]])
            spans = [(int(starts[place]) + first - plan.starts[place], row, count) for place, first, count, row in
                     zip(plan.media_places, plan.media_firsts, plan.media_counts, plan.media_rows)]
            upload.add("media_tokens", np.concatenate(
                [np.stack([np.arange(token, token + count), np.arange(row, row + count)]).astype(np.int32)
                 for token, row, count in spans], 1))

    def of_step(self, plan: StepPlan, upload: Upload) -> StepFeatures | None:
        """Of the images that the step computes tokens of; None where it has none."""
        if not plan.media_places:
            return None
        places, rows = upload["media_tokens"]
        return StepFeatures(places, self._rows.index_select(0, rows))

    def _pixels(self, encodes: list[Encode]) -> torch.Tensor:
        """[patches, patch values] float32, images one after the other."""
        device, counts = self._tower.device, [math.prod(encode.grid) for encode in encodes]
        host = torch.empty(sum(counts), self._tower.facts.patch_values, pin_memory=device.type == "cuda")
        for encode, part in zip(encodes, host.split(counts)):
            _read(encode.path, memoryview(part.numpy()).cast("B"))
        return host.to(device, non_blocking=True)


def _read(path: str, memory: memoryview) -> None:
    with open(path, "rb", buffering=0) as file:
        done = 0
        while done < len(memory):
            count = file.readinto(memory[done:])
            if not count:
                raise OSError(f"{path}: {os.fstat(file.fileno()).st_size} bytes are left of an image's {len(memory)}")
            done += count
