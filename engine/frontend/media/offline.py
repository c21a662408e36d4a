"""Images for `LLM`, whose callers wait: a loader on an event loop in a thread of its own, and batches of prompts as
large as there is room for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence

from quire.engine.config import EngineArgs
from quire.engine.errors import OverloadedError
from quire.engine.frontend.media.loader import MOST_WAITING, NO_IMAGES, ImageLoader, LoadedImages
from quire.engine.frontend.media.source import SentImage
from quire.engine.model_config import ModelConfig

_MOST_AT_ONCE = 64  # prompts with images, that are loaded before the first of them runs


class OfflineImages:
    """Belongs to one caller at a time. The thread is started with the first image."""

    def __init__(self, model: ModelConfig, args: EngineArgs) -> None:
        self._model = model
        self._args = args
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loader: ImageLoader | None = None

    def batches(self, sent: Sequence[Sequence[SentImage]], options: Sequence[Mapping[str, int]]
                ) -> Iterator[tuple[slice, list[LoadedImages]]]:
        """Of prompts with these images and options: which come next, and their images, which are there until the next
        are asked for. All prompts at once where none has an image.

        Raises:
            InvalidRequestError: an image cannot be taken.
            OverloadedError: the images of one prompt have no room.
        """
        if not any(sent):
            yield slice(0, len(sent)), [NO_IMAGES] * len(sent)
            return
        first = 0
        while first < len(sent):
            end = self._end_of_batch(sent, first)
            found = self._load(sent[first:end], options[first:end])
            try:
                yield slice(first, first + len(found)), found
            finally:
                self._release(found)
            first += len(found)

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            assert self._loader is not None
            asyncio.run_coroutine_threadsafe(self._loader.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _end_of_batch(self, sent: Sequence[Sequence[SentImage]], first: int) -> int:
        num_images = num_prompts = 0
        for place in range(first, len(sent)):
            num_images += len(sent[place])
            num_prompts += bool(sent[place])
            if place > first and (num_prompts > _MOST_AT_ONCE or num_images > MOST_WAITING):
                return place
        return len(sent)

    def _load(self, sent: Sequence[Sequence[SentImage]], options: Sequence[Mapping[str, int]]) -> list[LoadedImages]:
        """Of as many of the first as there is room for, and at least of one."""
        if not any(sent):
            return [NO_IMAGES] * len(sent)
        loop = self._started()
        found = asyncio.run_coroutine_threadsafe(self._gathered(sent, options), loop).result()
        errors = [one for one in found if isinstance(one, BaseException)]
        fatal = next((error for error in errors if not isinstance(error, OverloadedError)), None)
        end = next((i for i, one in enumerate(found) if isinstance(one, BaseException)), len(found))
        kept = [one for one in found[:end] if isinstance(one, LoadedImages)]
        if fatal is not None or not kept:
            kept = []
        self._release([one for one in found[len(kept):] if isinstance(one, LoadedImages)])
        if not kept:
            raise fatal or errors[0]
        return kept

    async def _gathered(self, sent: Sequence[Sequence[SentImage]], options: Sequence[Mapping[str, int]]
                        ) -> list[LoadedImages | BaseException]:
        if self._loader is None:
            self._loader = ImageLoader(self._model, self._args)
        loads = [self._loader.load(images, own) for images, own in zip(sent, options)]
        return await asyncio.gather(*loads, return_exceptions=True)

    def _release(self, images: Sequence[LoadedImages]) -> None:
        if self._loop is not None:
            for one in images:
                self._loop.call_soon_threadsafe(one.release)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="images", daemon=True)
            self._thread.start()
        return self._loop
