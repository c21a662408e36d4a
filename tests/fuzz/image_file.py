"""An image of a request: a `data:` or `file:` URL up to its bytes, a web address up to what would be asked of whom
(nothing is fetched), or an image file up to its pixels, as a process of the pool decodes it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import cache

from PIL import Image

from quire.engine.frontend.media import decode
from quire.engine.frontend.media.errors import BadImageError
from quire.engine.frontend.media.fetch import Fetcher, target_of
from quire.engine.frontend.media.source import Sources
from tests.engine.frontend.media.pictures import bmp_of, file_of, picture, png_of, turned, url_of
from tests.fuzz import loops

MAX_BYTES = 4096
MAX_PIXELS = 64 * 64


def seeds() -> list[bytes]:
    small = picture(16, 12)
    found = [*(file_of(small, kind) for kind in decode.FORMATS), file_of(small, "WEBP", lossless=True),
             *(file_of(picture(16, 12, mode)) for mode in ("RGBA", "P", "LA", "1")), turned(small, 6),
             file_of(picture(16, 12, "P"), transparency=0), file_of(picture(16, 12, "CMYK"), "JPEG"),
             file_of(small, "JPEG", progressive=True), file_of(small, "GIF", save_all=True, append_images=[small]),
             file_of(Image.new("I;16", (16, 12), 999)), png_of(64, 48), bmp_of(30, 30)]
    return [*found, url_of(found[0]).encode(), b"file:///etc/passwd", b"data:image/png;base64,AA==",
            b"https://user:word@host.example:8443/a%20b?c=d#e", b"http://[::1]/x.png"]


def target(data: bytes) -> None:
    scheme = data[:8].partition(b":")[0].lower()
    url = data.decode(errors="replace")
    with suppress(BadImageError):
        if scheme in (b"data", b"file"):
            loop, sources = _reader()
            loop.run_until_complete(sources.read(url))
        elif scheme in (b"http", b"https"):
            target_of(url)
        else:
            decode.decoded(decode.opened(data, MAX_PIXELS))


@cache
def _reader() -> tuple[asyncio.AbstractEventLoop, Sources]:
    return loops.new(), Sources(Fetcher(timeout_s=1.0, max_bytes=MAX_BYTES), MAX_BYTES)
