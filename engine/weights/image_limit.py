"""How many tokens the largest image becomes, by the limit of pixels that a checkpoint's image processor has.

Refuses to know torch and tensors. Called by `quire.engine.weights.hf_config`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError
from quire.engine.model_facts.vision import VisionFacts
from quire.engine.weights.json_file import read_json

_FILES = ("preprocessor_config.json", "processor_config.json")


def with_image_limit(path: Path, vision: VisionFacts | None) -> VisionFacts | None:
    """`vision` with the limit of the processor's file, where there is one that states it.

    Raises:
        ConfigError: a file is malformed.
    """
    if vision is None:
        return None
    pixels = next((pixels for name in _FILES if (pixels := _most_pixels(path / name)) is not None), None)
    if pixels is None:
        return vision
    return replace(vision, max_image_tokens=max(1, pixels // vision.token_pixels))


def _most_pixels(file: Path) -> int | None:
    """`size.longest_edge`, which is an area here, or its older name `max_pixels`."""
    if not file.is_file():
        return None
    stated: dict[str, Any] = read_json(file, dict)
    image = stated.get("image_processor", stated)  # processor_config.json speaks of other processors too
    image = image if isinstance(image, dict) else {}
    size = image.get("size")
    pixels = image.get("max_pixels")
    if pixels is None and isinstance(size, dict):
        pixels = size.get("longest_edge", size.get("max_pixels"))
    if pixels is None:
        return None
    if type(pixels) is not int or pixels < 1:
        raise ConfigError(f"{file}: the most pixels of an image must be a positive integer, is {shown(pixels)}")
    return pixels
