"""Images of requests made ready for the engine: had from where they are (`source`), made into pixel values by the
model's processor (`pool`), and held in shared memory (`pixel_files`) until their request has ended.

Belongs to one event loop. Called by `AsyncLLMEngine`, and by `LLM` through `blocking`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field

from quire.engine.config import EngineArgs
from quire.engine.errors import InvalidRequestError, OverloadedError
from quire.engine.frontend.media.errors import RETRY_S, BadImageError, ImageServiceError
from quire.engine.frontend.media.fetch import Fetcher, Resolve, resolved
from quire.engine.frontend.media.jobs import Job, Setup
from quire.engine.frontend.media.pixel_files import PixelFile, PixelFiles
from quire.engine.frontend.media.pool import ProcessPool
from quire.engine.frontend.media.source import RawImage, SentImage, Sources, is_web
from quire.engine.image_options import checked_limits, checked_options
from quire.engine.model_config import ModelConfig

PROCESS_TIMEOUT_S = 30.0
MOST_WAITING = 256  # images that are not processed yet; where so many are, requests are refused
_MOST_COUNTED = 64  # of these, for one request: its others are no reason to refuse somebody else
_MOST_OF_ONE = 8  # images of one request at a time, so that others come between them
_MOST_READ = 16  # at once: so many encoded images are in memory, and
_MOST_FETCHES = 32  # that are being fetched
_MOST_PROCESSES = 4
_CORES_A_PROCESS = 4
_BROKEN_S = 60.0  # until a client that is told so may try again


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """As `engine.messages.Media`, without its place in a prompt."""

    digest: bytes
    grid: tuple[int, int, int]  # (t, h, w) in patches
    path: str


@dataclass(slots=True)
class LoadedImages:
    """Those of one request, in order. Their files are there until `release`, which may be called more than once."""

    images: list[LoadedImage] = field(default_factory=list)
    release: Callable[[], None] = lambda: None


NO_IMAGES = LoadedImages()


class ImageLoader:
    """Args:
        model: its directory holds its processor's configuration.
        args: limits, and where images may come from.
        shared_by: processes like this one that the machine's cores and memory are for.
        resolve, pool: for tests.
    """

    def __init__(self, model: ModelConfig, args: EngineArgs, *, shared_by: int = 1, resolve: Resolve = resolved,
                 pool: ProcessPool | None = None) -> None:
        self._takes_images = model.vision is not None
        self._most_images = checked_limits(args.limit_mm_per_prompt)
        fetcher = Fetcher(args.image_fetch_timeout, args.max_image_bytes, args.allowed_media_domains, resolve)
        self._sources = Sources(fetcher, args.max_image_bytes, args.allowed_local_media_path)
        self._files = PixelFiles(args.image_memory_bytes, shared_by)
        cores = len(os.sched_getaffinity(0))
        num_processes = args.image_processes or max(1, min(_MOST_PROCESSES, cores // _CORES_A_PROCESS // shared_by))
        options: dict[str, object] = {**checked_options(args.mm_processor_kwargs)}
        self._pool = pool or ProcessPool(Setup(model.path, args.max_image_pixels, options), num_processes,
                                         PROCESS_TIMEOUT_S)
        self._turns = asyncio.Semaphore(_MOST_READ)
        self._fetches = asyncio.Semaphore(_MOST_FETCHES)
        self._num_waiting = 0

    @property
    def pool(self) -> ProcessPool:
        return self._pool

    @property
    def files(self) -> PixelFiles:
        return self._files

    def warm_up(self) -> None:
        """Begin to start what the first image needs."""
        self._pool.warm_up()

    async def load(self, images: Sequence[SentImage], options: Mapping[str, int], salt: str = "") -> LoadedImages:
        """`options` are as `checked_options` gives them; with different salts, equal images share nothing.

        Raises:
            InvalidRequestError: an image cannot be taken; says which and why.
            OverloadedError: not now.
        """
        if not images:
            return NO_IMAGES
        self._check_number(images)
        if self._num_waiting >= MOST_WAITING:
            raise OverloadedError(f"{self._num_waiting} images wait to be processed already; at most {MOST_WAITING} "
                                  "may. Please try again.", RETRY_S, reason="images")
        num_counted = min(len(images), _MOST_COUNTED)
        self._num_waiting += num_counted
        held: list[PixelFile] = []

        def release() -> None:
            while held:
                self._files.release(held.pop())

        turns = asyncio.Semaphore(_MOST_OF_ONE)

        async def in_turn(image: SentImage) -> LoadedImage:
            async with turns:
                return await self._load(image, repr((salt, sorted(options.items()))), options, held)

        tasks = [asyncio.ensure_future(in_turn(image)) for image in images]
        try:
            return LoadedImages(await asyncio.gather(*tasks), release)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            release()
            raise
        finally:
            self._num_waiting -= num_counted

    async def close(self) -> None:
        await self._pool.close()
        self._files.remove_all()

    def _check_number(self, images: Sequence[SentImage]) -> None:
        if not self._takes_images:
            raise InvalidRequestError("This model takes text only, and the request has an image at "
                                      f"{images[0].where}. Leave it out, or ask a model that sees.", images[0].where)
        if len(images) > self._most_images:
            raise InvalidRequestError(f"The prompt has {len(images)} images; at most {self._most_images} are taken "
                                      "(--limit-mm-per-prompt).", images[self._most_images].where)

    async def _load(self, image: SentImage, shared_with: str, options: Mapping[str, int], held: list[PixelFile]
                    ) -> LoadedImage:
        try:
            async with self._turn_with(image.source) as (data, size):
                key = await asyncio.to_thread(_key, data, repr((size, image.most_pixels, shared_with)))
                file = self._files.hold(key, lambda path, admit, begin: self._pool.run(
                    Job(data, size, dict(options), image.most_pixels, path), admit, begin))
                held.append(file)
                # Others may wait for the same: whoever leaves does not end it.
                done = await asyncio.shield(file.made)
        except BadImageError as error:
            raise InvalidRequestError(f"The image at {image.where} cannot be taken: {error}.", image.where) from None
        except ImageServiceError:
            raise OverloadedError("This server cannot process images now; its log says why.", _BROKEN_S,
                                  reason="images") from None
        return LoadedImage(done.digest, done.grid, file.path)

    @asynccontextmanager
    async def _turn_with(self, source: str | RawImage) -> AsyncIterator[tuple[bytes, tuple[int, int] | None]]:
        """The image's bytes, with their size where they are pixels; inside, it is one of the few that are in memory.
        Who waits for a slow web server keeps no image from its turn that is here already."""
        fetched = None
        async with self._fetches if is_web(source) else nullcontext():
            if is_web(source):
                fetched = await self._sources.read(source)
            await self._turns.acquire()
        try:
            if isinstance(source, RawImage):
                yield source.rgb, (source.width, source.height)
            else:
                yield await self._sources.read(source) if fetched is None else fetched, None
        finally:
            self._turns.release()


def _key(data: bytes, rest: str) -> bytes:
    found = hashlib.sha256(f"{len(rest)} {rest} ".encode())
    found.update(data)
    return found.digest()

