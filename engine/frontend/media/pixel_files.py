"""Files of pixel values in shared memory, which the engine reads: who needs each, and how much they take together.

A file is there for as long as a request holds it, and equal images share one. All lie in a private directory, so that
whatever ends this process, the next one that makes such a directory clears them away. Called by `loader`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from quire.engine.frontend.media.errors import BadImageError, no_room
from quire.engine.frontend.media.jobs import Done
from quire.engine.private_dir import PrivateDirectory

# Writes a file of this path; tells its size before, and when it begins at all.
Make = Callable[[str, Callable[[int], None], Callable[[], None]], Awaitable[Done]]

SHARED_MEMORY = "/dev/shm"
MOST_BYTES = 4 * 2**30  # where nobody says how many
_MOST_OF_FREE = 0.75  # of the file system, which ranks of one engine use, too


@dataclass(eq=False)
class PixelFile:
    key: bytes  # of the image and what is made of it
    path: str
    made: asyncio.Task[Done]
    is_begun: bool = False  # it is not only in line
    num_bytes: int = 0
    num_holders: int = 0


class PixelFiles:
    """Args:
        budget_bytes: for all files; None: what the file system allows.
        shared_by: processes that have such files there.
    """

    def __init__(self, budget_bytes: int | None, shared_by: int = 1) -> None:
        parent = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
        self._directory = PrivateDirectory(parent)
        if budget_bytes is None:
            found = os.statvfs(self._directory.path)
            budget_bytes = min(MOST_BYTES, int(found.f_bavail * found.f_frsize * _MOST_OF_FREE))
        self._budget_bytes = budget_bytes // shared_by
        self._used_bytes = 0
        self._num_made = 0
        self._files: dict[bytes, PixelFile] = {}

    @property
    def directory(self) -> str:
        return self._directory.path

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def hold(self, key: bytes, make: Make) -> PixelFile:
        """The file of `key`, which `make` begins to write where there is none. To be released."""
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = self._begun(key, make)
        file.num_holders += 1
        return file

    def _begun(self, key: bytes, make: Make) -> PixelFile:
        self._num_made += 1
        path = f"{self._directory.path}/{self._num_made}"

        def begin() -> None:
            file.is_begun = True

        async def making() -> Done:
            return await make(path, lambda num_bytes: self._admit(file, num_bytes), begin)

        file = PixelFile(key, path, asyncio.get_running_loop().create_task(making()))
        file.made.add_done_callback(lambda made: self._ended(file, made))
        return file

    def release(self, file: PixelFile) -> None:
        file.num_holders -= 1
        if file.num_holders:
            return
        if file.made.done():
            self._remove(file)
        elif not file.is_begun:
            # Nobody wants what nobody has begun: clients that come and leave would fill the line, and memory.
            self._remove(file)
            file.made.cancel()

    def remove_all(self) -> None:
        self._files.clear()
        self._directory.remove()

    def _admit(self, file: PixelFile, num_bytes: int) -> None:
        """Raises BadImageError for a file that can never be there, OverloadedError for one that cannot now."""
        if num_bytes > self._budget_bytes:
            raise BadImageError(f"its pixel values take {num_bytes} bytes, and all images together may take "
                                f"{self._budget_bytes} (--image-memory-bytes); a smaller max_pixels in "
                                "mm_processor_kwargs makes fewer of them")
        if self._used_bytes + num_bytes > self._budget_bytes:
            raise no_room()
        file.num_bytes = num_bytes
        self._used_bytes += num_bytes

    def _ended(self, file: PixelFile, made: asyncio.Task[Done]) -> None:
        failed = made.cancelled() or made.exception() is not None
        if failed or not file.num_holders:  # who asks for it again after a failure has it made again
            self._remove(file)

    def _remove(self, file: PixelFile) -> None:
        if self._files.get(file.key) is file:
            del self._files[file.key]
        self._used_bytes -= file.num_bytes
        file.num_bytes = 0
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.path)
