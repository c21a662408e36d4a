"""From the bytes of an image file to its pixels, with Pillow. Runs in a process of the pool, and where a program passes
an image of Pillow's itself.

What a file claims is checked before its pixels are decoded. Formats that are not listed are not even looked for: each
more is another decoder for a stranger's bytes.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from quire.engine.frontend.media.errors import BadImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_ASPECT = 200  # of the sides; beyond it the model would see no more than a line
_ORIENTATION = 0x0112  # in EXIF
_WHITE = (255, 255, 255)


def opened(encoded: bytes, max_pixels: int) -> Image.Image:
    """The image, of which only the head was read. Raises BadImageError."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Exception:  # a decoder may raise anything, and its words may hold what is nobody's business
        raise BadImageError(f"it is no image that can be read as {', '.join(FORMATS)}") from None
    check_size(image.width, image.height, max_pixels)
    return image


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises BadImageError."""
    if not width or not height:
        raise BadImageError("it has no pixels")
    if width * height > max_pixels:
        raise BadImageError(f"it has {width} x {height} pixels; at most {max_pixels} are taken (--max-image-pixels)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImageError(f"it has {width} x {height} pixels; one side may be at most {MAX_ASPECT} times the other")


def decoded(image: Image.Image) -> Image.Image:
    """Its first frame in RGB, turned as its EXIF says, on white where it is transparent. Raises BadImageError."""
    try:
        image.load()
    except Exception:  # as above
        raise BadImageError("its pixels cannot be decoded: the file is cut off or broken") from None
    return as_rgb(_turned(image))


def as_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's images."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, (*_WHITE, 255))
        return Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _orientation(image: Image.Image) -> int:
    """Of an image that is loaded: a PNG would be loaded here, and what is wrong with it would pass for bad EXIF data.
    1, upright, also where these cannot be read: no viewer refuses an image for that."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1
