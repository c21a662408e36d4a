"""Where an image of a request comes from, and how its bytes are had: from a data: URL, a web server, or a file that may
be read.

Called by `loader`. Knows no image formats.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard
from urllib.parse import unquote, urlsplit

from quire.engine.frontend.media.errors import BadImageError
from quire.engine.frontend.media.fetch import Fetcher

_MAX_DATA_HEAD = 256  # characters of a data: URL before its comma


@dataclass(frozen=True, slots=True)
class RawImage:
    """Pixels that a program has in memory: red, green and blue, a byte each, row by row."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image as a request names it."""

    where: str  # in the request, as messages[0].content[1]
    source: str | RawImage  # a URL, or the pixels
    most_pixels: int | None = None  # that the model is to see of it, where the request says so of this image


def is_web(source: str | RawImage) -> TypeGuard[str]:
    """Whether the image has to be fetched."""
    return isinstance(source, str) and _scheme(source) in ("http", "https")


def _scheme(url: str) -> str:
    return url[:8].partition(":")[0].lower()


class Sources:
    """Args:
        max_bytes: of an encoded image.
        local_path: the directory below which file: URLs may point; None: nowhere.
    """

    def __init__(self, fetcher: Fetcher, max_bytes: int, local_path: str | None = None) -> None:
        self._fetcher = fetcher
        self._max_bytes = max_bytes
        self._local = None if local_path is None else Path(local_path).resolve()

    async def read(self, url: str) -> bytes:
        """The encoded image. Raises BadImageError."""
        scheme = _scheme(url)
        if scheme == "data":
            return await asyncio.to_thread(self._decoded, url)
        if is_web(url):
            return await self._fetcher.fetch(url)
        if scheme == "file":
            return await asyncio.to_thread(self._file, url)
        raise BadImageError("its URL must begin with https:, http: or data:image/" +
                            (", or with file:" if self._local else ""))

    def _decoded(self, url: str) -> bytes:
        head, comma, _ = url[5:5 + _MAX_DATA_HEAD].partition(",")
        kind, *parameters = head.lower().split(";")
        if not comma or "base64" not in parameters or not kind.startswith("image/"):
            raise BadImageError("its data: URL must begin like data:image/png;base64,")
        start = 5 + len(head) + 1
        if (len(url) - start) * 3 // 4 > self._max_bytes + 2:
            raise self._too_long()
        try:
            return base64.b64decode(memoryview(url.encode("ascii"))[start:], validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise BadImageError("its data: URL holds what is not base64") from None

    def _file(self, url: str) -> bytes:
        if self._local is None:
            raise BadImageError("this server reads no files for requests (--allowed-local-media-path)")
        refused = BadImageError("it is no file below the directory of --allowed-local-media-path that the server can "
                                "read")
        try:
            parts = urlsplit(url)
            path = Path(unquote(parts.path)).resolve()
            if parts.netloc not in ("", "localhost") or not path.is_relative_to(self._local):
                raise refused
            data = _read_regular(path, self._max_bytes + 1)
        except (OSError, ValueError, RuntimeError):  # a loop of links is a RuntimeError
            raise refused from None
        if len(data) > self._max_bytes:
            raise self._too_long()
        return data

    def _too_long(self) -> BadImageError:
        return BadImageError(f"it has more than {self._max_bytes} bytes (--max-image-bytes)")


def _read_regular(path: Path, most: int) -> bytes:
    """So many bytes of a file at most, by its resolved path. Raises OSError, also for what is no regular file. Follows
    no link: one that took the place of the file, or of a folder above it, since the path was judged would lead
    elsewhere; waits for no pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.readlink(f"/proc/self/fd/{descriptor}") != str(path):
            raise OSError("no regular file, or not this one")
        return io.FileIO(descriptor, closefd=False).read(most)
    finally:
        os.close(descriptor)
