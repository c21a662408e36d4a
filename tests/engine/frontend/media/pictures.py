"""Image files, good, strange and hostile: each with the words that it is refused with, or None where it is taken."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 1_000_000  # of the loader that these are for
MAX_BYTES = 300_000
NO_IMAGE, BROKEN = "no image that can be read", "cut off or broken"


def picture(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    grey = Image.effect_mandelbrot((width, height), (-2, -1, 1, 1), 50)
    turned = grey.transpose(Image.Transpose.ROTATE_180)
    return Image.merge("RGB", (grey, turned, Image.new("L", grey.size, 99))).convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    found = io.BytesIO()
    image.save(found, kind, **options)
    return found.getvalue()


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, body: bytes = b"", bits: int = 8, color: int = 2, *more: bytes) -> bytes:
    """A PNG that claims to be of this size."""
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def bmp_of(width: int, height: int) -> bytes:
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif_of(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"," + struct.pack(
        "<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def webp_of(width: int, height: int) -> bytes:
    """An extended WebP whose canvas claims to be of this size."""
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def grey_of_16_bits() -> Image.Image:
    return Image.fromarray((np.arange(64 * 48, dtype=np.uint32).reshape(48, 64) * 21).astype(np.uint16))


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(image, "JPEG", exif=exif, quality=95)


def corpus() -> dict[str, tuple[bytes, str | None]]:
    rgb, png, jpeg = picture(), file_of(picture()), file_of(picture(), "JPEG")
    frames = [picture(), picture(mode="L").convert("RGB")]
    noise = random.Random(1).randbytes
    exif = b"\xff\xe1" + struct.pack(">H", 40) + b"Exif\0\0" + b"\xff" * 32
    return {
        # Taken.
        "png": (png, None), "jpeg": (jpeg, None), "webp": (file_of(rgb, "WEBP"), None),
        "gif": (file_of(rgb, "GIF"), None), "bmp": (file_of(rgb, "BMP"), None),
        "webp lossless": (file_of(rgb, "WEBP", lossless=True), None),
        "rgba": (file_of(picture(mode="RGBA")), None), "palette": (file_of(picture(mode="P")), None),
        "palette with a transparent entry": (file_of(picture(mode="P"), transparency=0), None),
        "grey and alpha": (file_of(picture(mode="LA")), None), "one bit": (file_of(picture(mode="1")), None),
        "16 bits of grey": (file_of(grey_of_16_bits()), None), "cmyk": (file_of(picture(mode="CMYK"), "JPEG"), None),
        "progressive": (file_of(rgb, "JPEG", progressive=True), None),
        "animated gif": (file_of(rgb, "GIF", save_all=True, append_images=frames), None),
        "animated png": (file_of(rgb, "PNG", save_all=True, append_images=frames), None),
        "animated webp": (file_of(rgb, "WEBP", save_all=True, append_images=frames), None),
        "several pictures in a jpeg": (file_of(rgb, "MPO", save_all=True, append_images=frames), None),
        "turned": (turned(rgb, 6), None), "exif of rubbish": (jpeg[:2] + exif + jpeg[2:], None),
        "orientation 99": (turned(rgb, 99), None),
        "one pixel": (file_of(picture(1, 1)), None), "narrow": (file_of(picture(1, 200)), None),
        "bytes behind the end": (png + b"MZ" + noise(1000), None),
        "a script behind a jpeg": (jpeg + b"<script>alert(1)</script>", None),
        "an icc profile of rubbish": (file_of(rgb, icc_profile=noise(500)), None),
        # Refused by what they claim, before they are decoded.
        "png bomb": (png_of(20_000, 20_000, zlib.compress(bytes(60_001))), "20000 x 20000 pixels"),
        "png of 2**31 pixels a side": (png_of(2**31 - 1, 2**31 - 1), "pixels"),
        "bmp bomb": (bmp_of(30_000, 30_000), "30000 x 30000 pixels"),
        "gif bomb": (gif_of(65_535, 65_535), "65535 x 65535 pixels"),
        "webp bomb": (webp_of(16_383, 16_383), ""),
        "jpeg bomb": (jpeg.replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65_000, 65_000), 1), "65000"),
        "1 x 100000": (png_of(100_000, 1, zlib.compress(bytes(300_001))), "one side may be at most 200 times"),
        "201 to 1": (file_of(picture(201, 1)), "one side may be at most 200 times"),
        "a pixel too many": (file_of(Image.new("L", (1001, 1000))), "1001 x 1000 pixels; at most 1000000"),
        "no pixels": (png_of(0, 10), ""),
        "too many bytes": (file_of(Image.frombytes("RGB", (400, 400), noise(480_000))), "300000 bytes"),
        # Refused while they are decoded.
        "truncated png": (png[:len(png) // 2], ""), "truncated jpeg": (jpeg[:len(jpeg) // 2], BROKEN),
        "truncated webp": (file_of(rgb, "WEBP")[:-40], ""), "truncated gif": (file_of(rgb, "GIF")[:-300], BROKEN),
        "truncated bmp": (file_of(rgb, "BMP")[:4000], BROKEN), "png without data": (png_of(64, 48), ""),
        "png of rubbish": (png_of(64, 48, noise(2000)), BROKEN), "jpeg of rubbish": (jpeg[:300] + noise(500), ""),
        "png with a wrong checksum": (png[:-20] + b"\0\0\0\0" + png[-16:], ""),
        "text bomb in a png": (png_of(64, 48, b"", 8, 2, *(
            chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(60 * 2**20), 9)) for _ in range(3))), ""),
        # Refused as no image, or none of a format that is taken.
        "nothing": (b"", NO_IMAGE), "rubbish": (noise(3000), NO_IMAGE), "text": (b"an image of a cat", NO_IMAGE),
        "html": (b"<!doctype html><html><body>404</body></html>", NO_IMAGE),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', NO_IMAGE),
        "svg with an entity bomb": (b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>', NO_IMAGE),
        "tiff": (file_of(rgb, "TIFF"), NO_IMAGE), "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + noise(200), NO_IMAGE),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
        "pdf": (b"%PDF-1.7\n", NO_IMAGE), "ico": (file_of(rgb, "ICO"), NO_IMAGE),
        "ppm": (file_of(rgb, "PPM"), NO_IMAGE), "tga": (file_of(rgb, "TGA"), NO_IMAGE),
        "mp4": (b"\0\0\0\x20ftypisom" + noise(500), NO_IMAGE), "zip": (b"PK\x03\x04" + noise(500), NO_IMAGE),
        "pickle": (b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x94", NO_IMAGE),
        "only a signature": (b"\x89PNG\r\n\x1a\n", NO_IMAGE), "half a head": (png[:20], NO_IMAGE),
    }


URLS = {  # that are refused without anything being read
    "an unknown scheme": ("gopher://x/", "must begin with"), "no scheme": ("/etc/passwd", "must begin with"),
    "nothing": ("", "must begin with"), "a script": ("javascript:alert(1)", "must begin with"),
    "a file": ("file:///etc/passwd", "reads no files"), "blob": ("blob:http://x/1", "must begin with"),
    "a video": (url_of(b"x", "video/mp4"), "must begin like data:image"),
    "html": (url_of(b"x", "text/html"), "must begin like data:image"),
    "no base64": ("data:image/png,abc", "must begin like data:image"),
    "no comma": ("data:image/png;base64" + "A" * 500, "must begin like data:image"),
    "a wrong alphabet": ("data:image/png;base64,a-_b", "not base64"),
    "escapes": ("data:image/png;base64,%41%41%41%41", "not base64"),
    "a character that is not ASCII": ("data:image/png;base64,AA\u00e4A", "not base64"),
    "padding in the middle": ("data:image/png;base64,AA==AA==", ""),
    "the metadata service": ("http://169.254.169.254/latest/meta-data/iam/", "metadata"),
    "this machine": ("http://localhost:22/", "private network"),
    "a private network": ("https://192.168.0.1/x.png", "private network"),
    "a long one": ("http://x/" + "a" * 10_000, "characters"),
}
