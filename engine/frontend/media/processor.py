"""The model's image processor, as transformers has it, without torch: Pillow and numpy alone.

What it makes of an image is a row of float32 for each patch, which is what vision towers take. Runs in a process of the
pool.
"""

from __future__ import annotations

import hashlib
import math
import sys
from typing import Any

import numpy as np
from PIL import Image

from quire.engine.frontend.media.errors import BadImageError
from quire.engine.image_options import area_of

# Bytes of the file come in pieces of this size: a full file system then says so, where a map of it would be a signal.
_WRITE_BYTES = 2**20


class Processor:
    """Args:
        model: a directory with preprocessor_config.json or processor_config.json.
        options: over those of the configuration.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        # transformers would load torch, which takes seconds and 200 MB, and use it for nothing.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        import transformers  # heavy; the pool's processes alone pay for it

        self._processor = transformers.AutoImageProcessor.from_pretrained(
            model, backend="pil", local_files_only=True, trust_remote_code=False)
        least, most = self._area = area_of(options, (int(self._processor.size["shortest_edge"]),
                                                     int(self._processor.size["longest_edge"])))
        self._processor.size = {"shortest_edge": least, "longest_edge": most}
        patch, channels = self._processor.patch_size, len(self._processor.image_mean)
        self._patch_values = channels * self._processor.temporal_patch_size * patch**2

    def area(self, options: dict[str, Any], most_pixels: int | None) -> tuple[int, int]:
        """The fewest and the most pixels that the model sees of an image. Raises BadImageError for more than it was
        set up for."""
        least, most = area_of(options, self._area)
        if most > self._area[1]:
            raise BadImageError(f"mm_processor_kwargs ask for up to {most} pixels of it, and this server's model sees "
                                f"at most {self._area[1]} (--mm-processor-kwargs)")
        most = min(most, most_pixels or most)
        return min(least, most), most

    def num_bytes(self, width: int, height: int, area: tuple[int, int]) -> int:
        """That the rows of such an image have."""
        patches = self._processor.get_number_of_image_patches(
            height, width, {"min_pixels": area[0], "max_pixels": area[1]})
        return int(patches) * self._patch_values * 4

    def rows(self, image: Image.Image, area: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int]]:
        """float32 [t * h * w, patch values], and (t, h, w), of an RGB image."""
        found = self._processor(images=[image], size={"shortest_edge": area[0], "longest_edge": area[1]},
                                return_tensors="np")
        t, h, w = (int(side) for side in found["image_grid_thw"][0])
        rows = np.ascontiguousarray(found["pixel_values"], dtype="<f4")
        assert rows.shape == (t * h * w, self._patch_values), (rows.shape, (t, h, w))
        return rows, (t, h, w)


def digest(rows: np.ndarray, grid: tuple[int, int, int]) -> bytes:
    """Of what the tower sees. The head has a fixed length and says what follows, so that no two inputs run together."""
    head = f"{rows.dtype.str} {grid[0]:010} {grid[1]:010} {grid[2]:010} {math.prod(rows.shape):020}\0".encode()
    found = hashlib.sha256(head)
    found.update(rows.data)
    return found.digest()


def write(rows: np.ndarray, path: str) -> None:
    """Raises OSError where there is no room."""
    view = rows.data.cast("B")
    with open(path, "xb", buffering=0) as file:
        for start in range(0, len(view), _WRITE_BYTES):
            rest = view[start:start + _WRITE_BYTES]
            while rest:
                rest = rest[file.write(rest):]
