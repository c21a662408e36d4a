from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import pytest

from quire.engine.config import EngineArgs
from quire.engine.frontend.media.errors import no_room
from quire.engine.frontend.media.loader import LoadedImages
from quire.engine.frontend.media.offline import OfflineImages


class Loader:
    """Has room for two prompts' images, and takes those of a batch up from its end."""

    def __init__(self) -> None:
        self.num_held = 0
        self.waiting = 0

    async def load(self, images: Sequence[Any], options: Mapping[str, int]) -> LoadedImages:
        self.waiting += 1
        place = self.waiting
        await asyncio.sleep(0)  # until the others of the batch are here
        while self.waiting > place:
            await asyncio.sleep(0)
        self.waiting -= 1
        if self.num_held == 2:
            raise no_room()
        self.num_held += 1
        return LoadedImages([], self._release)

    def _release(self) -> None:
        self.num_held -= 1

    async def close(self) -> None:
        pass


@pytest.fixture
def images() -> Iterator[OfflineImages]:
    made = OfflineImages(cast(Any, None), EngineArgs())
    made._loader = cast(Any, Loader())
    yield made
    made.close()


def test_a_prompt_whose_images_were_overtaken_is_asked_for_again_alone(images: OfflineImages) -> None:
    sent: list[list[Any]] = [["image"]] * 5
    batches = [part for part, _ in images.batches(sent, [{}] * 5)]
    assert [place for part in batches for place in range(part.start, part.stop)] == [0, 1, 2, 3, 4]
    assert batches[0] == slice(0, 1), "those behind it had taken the room"
    images.close()
    assert cast(Any, images._loader).num_held == 0
