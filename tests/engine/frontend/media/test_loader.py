"""Images of requests, from URLs to files in shared memory: what is taken, what is refused, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from transformers import AutoImageProcessor

from quire.engine.config import EngineArgs
from quire.engine.errors import InvalidRequestError, OverloadedError
from quire.engine.frontend.media.jobs import Setup
from quire.engine.frontend.media.loader import MOST_WAITING, ImageLoader, LoadedImages
from quire.engine.frontend.media.pool import ProcessPool
from quire.engine.frontend.media.source import RawImage, SentImage, _read_regular
from quire.engine.model_config import ModelConfig
from quire.engine.model_facts.vision import VisionFacts
from tests.engine.conftest import model_at
from tests.engine.frontend.media import pictures, web
from tests.engine.frontend.media.pictures import file_of, picture, turned, url_of
from tests.engine.frontend.media.test_pool import SCRIPTED
from tests.engine.frontend.media.web import Web

pytestmark = pytest.mark.asyncio(loop_scope="module")
WHERE = "messages[0].content[1]"
PIXELS = {"min_pixels": 4 * 28 * 28, "max_pixels": 400 * 28 * 28}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("processor")
    (path / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
        **PIXELS}))
    return model_at(path, vision=VisionFacts(
        model_type="qwen2_vl", image_token_id=1, video_token_id=2, vision_start_id=3, vision_end_id=4, patch_size=14,
        merge_size=2, temporal_patch_size=2, in_channels=3, max_image_tokens=400, depth=1, width=8, num_heads=1,
        intermediate_size=8, hidden_act="silu", out_width=8))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(model: ModelConfig) -> AsyncIterator[ProcessPool]:
    """Of one process, for nearly all tests: it takes seconds to start."""
    found = ProcessPool(Setup(model.path, pictures.MAX_PIXELS, {}), 1, 30.0)
    yield found
    pids = found.pids
    await found.close()
    assert pids and not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


Shared = Callable[..., AbstractAsyncContextManager[ImageLoader]]  # of arguments for the engine


@asynccontextmanager
async def loading(model: ModelConfig, pool: ProcessPool | None = None, **args: Any) -> AsyncIterator[ImageLoader]:
    """Nothing may be left of it."""
    loader = ImageLoader(model, EngineArgs(**{"image_processes": 1, "max_image_pixels": pictures.MAX_PIXELS,
                                              "max_image_bytes": pictures.MAX_BYTES, **args}), pool=pool)
    try:
        yield loader
        assert loader.files.used_bytes == 0 and not files_in(loader)
    finally:
        if pool is None:
            await loader.close()
        else:
            loader.files.remove_all()
    assert not os.path.exists(loader.files.directory)


@pytest.fixture
def shared(model: ModelConfig, pool: ProcessPool) -> Shared:
    return partial(loading, model, pool)


def files_in(loader: ImageLoader) -> list[str]:
    return [name for name in os.listdir(loader.files.directory) if not name.startswith(".")]


async def load(loader: ImageLoader, *urls: str | RawImage, **options: int) -> LoadedImages:
    return await loader.load([SentImage(WHERE, url) for url in urls], options)


async def refusal(loader: ImageLoader, url: str | RawImage, **options: int) -> str:
    try:
        (await load(loader, url, **options)).release()
    except InvalidRequestError as error:
        return error.message if error.param == WHERE and WHERE in error.message else f"NOT NAMED: {error.message}"
    return "TAKEN"


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_hostile_corpus_is_taken_or_refused_and_leaves_nothing(shared: Shared) -> None:
    """Good ones between the others: the process that has met them all still works."""
    corpus = pictures.corpus()
    wrong: dict[str, str] = {}
    async with shared() as loader:
        for name, (data, expected) in corpus.items():
            said = await refusal(loader, url_of(data))
            is_as_expected = said == "TAKEN" if expected is None else said != "TAKEN" and expected in said
            if not is_as_expected or "0x" in said or "Error" in said:  # a decoder's own words
                wrong[name] = said
        for name, (url, expected) in pictures.URLS.items():
            said = await refusal(loader, url)
            if said == "TAKEN" or expected not in said:
                wrong[name] = said
        assert not wrong
        assert len(corpus) + len(pictures.URLS) > 80
        [pid] = loader.pool.pids  # none of them ended it
        before = resident(pid)
        for data, _ in corpus.values():
            await refusal(loader, url_of(data))
        assert loader.pool.pids == [pid] and resident(pid) < before + 32 * 2**20


async def test_the_engine_gets_what_transformers_makes_of_an_image(model: ModelConfig, shared: Shared) -> None:
    processor = AutoImageProcessor.from_pretrained(model.path, backend="pil")
    rgb, wide = picture(), picture(300, 30)
    white = Image.new("RGB", (64, 48), "white")
    clear = picture(mode="RGBA")
    clear.putalpha(0)
    grey = np.asarray(pictures.grey_of_16_bits()) >> 8
    cases = {  # as sent, and what it is to be
        url_of(file_of(rgb)): rgb, url_of(file_of(wide)): wide, url_of(file_of(clear)): white,
        url_of(file_of(pictures.grey_of_16_bits())): Image.fromarray(grey.astype(np.uint8)).convert("RGB"),
        url_of(turned(Image.new("RGB", (64, 32), "red"), 6)): Image.new("RGB", (32, 64), (254, 0, 0)),
        url_of(file_of(Image.new("RGB", (64, 48), "blue"), "GIF", save_all=True, append_images=[white])): Image.new(
            "RGB", (64, 48), "blue")}
    async with shared() as loader:
        for url, image in cases.items():
            loaded = await load(loader, url)
            [one] = loaded.images
            expected = processor(images=[image], return_tensors="np")
            assert list(one.grid) == expected["image_grid_thw"][0].tolist()
            rows = np.fromfile(one.path, np.float32).reshape(expected["pixel_values"].shape)
            np.testing.assert_allclose(rows, expected["pixel_values"], atol=1e-6)
            loaded.release()
        loaded = await load(loader, RawImage(64, 48, rgb.tobytes()), url_of(file_of(rgb)))
        assert loaded.images[0].digest == loaded.images[1].digest
        loaded.release()


async def test_equal_images_share_a_file_and_a_digest_and_one_other_pixel_does_not(shared: Shared) -> None:
    other = picture()
    other.putpixel((5, 5), (1, 2, 3))
    async with shared() as loader:
        loaded = await load(loader, url_of(file_of(picture())), url_of(file_of(picture())), url_of(file_of(other)))
        again = await load(loader, url_of(file_of(picture())))
        first, second, third = loaded.images
        assert first == second == again.images[0] and third.digest != first.digest and third.path != first.path
        assert len(files_in(loader)) == 2
        loaded.release()
        loaded.release()  # once more is nothing
        assert files_in(loader) == [os.path.basename(first.path)]  # which the other request still has
        again.release()


async def test_fewer_pixels_make_a_smaller_grid_and_more_than_the_servers_are_refused(model: ModelConfig) -> None:
    large = url_of(file_of(picture(560, 280)))
    async with loading(model, mm_processor_kwargs={"max_pixels": 100 * 28 * 28}) as loader:
        whole = await load(loader, large)
        part = await load(loader, large, max_pixels=50 * 28 * 28)
        low = await loader.load([SentImage(WHERE, large, most_pixels=8 * 28 * 28)], {})
        tokens = [t * h * w // 4 for one in (whole, part, low) for t, h, w in [one.images[0].grid]]
        assert tokens == [98, 50, 8]
        assert "sees at most 78400" in await refusal(loader, large, max_pixels=101 * 28 * 28)
        for one in (whole, part, low):
            one.release()


async def test_memory_for_images_has_an_end_and_comes_back(shared: Shared) -> None:
    urls = [url_of(file_of(picture(280, 280, mode))) for mode in ("RGB", "L")]
    size = 400 * 1176 * 4
    async with shared(image_memory_bytes=size + 1) as loader:
        held = await load(loader, urls[0])
        assert loader.files.used_bytes == size
        with pytest.raises(OverloadedError, match="shared memory for images is full") as caught:
            await load(loader, urls[1])
        assert caught.value.reason == "image_memory" and caught.value.retry_after_s > 0
        held.release()
        (await load(loader, urls[1])).release()
        assert "all images together may take" in await refusal(loader, url_of(file_of(picture(560, 560))))
        many = await load(loader, *[urls[0]] * (MOST_WAITING + 1))  # which one request may have
        assert len(many.images) == MOST_WAITING + 1 and loader.files.used_bytes == size
        many.release()


async def test_one_bad_image_gives_back_the_others(shared: Shared) -> None:
    async with shared() as loader:
        with pytest.raises(InvalidRequestError):
            await load(loader, url_of(file_of(picture())), url_of(b"rubbish"))
        task = asyncio.create_task(load(loader, url_of(file_of(picture(500, 500)))))
        await asyncio.sleep(0.01)
        task.cancel()  # the client left
        with pytest.raises(asyncio.CancelledError):
            await task
        await load(loader)  # nothing is to be loaded
        (await load(loader, url_of(file_of(picture())))).release()  # behind what nobody waits for any more


async def test_an_image_that_is_here_waits_for_no_web_server(shared: Shared) -> None:
    async with Web({"/": web.silently}).serving() as server, shared(
            allowed_media_domains=["127.0.0.1"], image_fetch_timeout=60) as loader:
        slow = [asyncio.create_task(load(loader, f"http://127.0.0.1:{server.port}/")) for _ in range(40)]
        (await asyncio.wait_for(load(loader, url_of(file_of(picture()))), 30)).release()
        assert not any(task.done() for task in slow)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


async def test_images_are_counted_and_for_models_that_see(shared: Shared, pool: ProcessPool, tmp_path: Path) -> None:
    url = url_of(file_of(picture()))
    async with shared(limit_mm_per_prompt={"image": 1}) as loader:
        with pytest.raises(InvalidRequestError, match=r"has 2 images; at most 1 .*--limit-mm-per-prompt"):
            await load(loader, url, url)
    async with loading(model_at(tmp_path), pool) as loader:
        with pytest.raises(InvalidRequestError, match="takes text only"):
            await load(loader, url)


async def test_images_that_clients_left_behind_are_not_begun_and_those_that_wait_are_counted(model: ModelConfig
                                                                                         ) -> None:
    pool = ProcessPool(Setup(model.path, 1, {}), 1, 60.0, SCRIPTED)
    async with loading(model, pool) as loader:
        slow = asyncio.create_task(load(loader, url_of(b"hangs")))
        while not any(file.is_begun for file in loader.files._files.values()):
            await asyncio.sleep(0.01)
        for number in range(5):  # clients who come and leave
            leaving = asyncio.create_task(load(loader, *[url_of(b"%d of %d" % (i, number)) for i in range(8)]))
            while pool._num_waiting < 8:
                await asyncio.sleep(0.01)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            while pool._num_waiting:
                await asyncio.sleep(0)
        assert len(loader.files._files) == 1
        many = [asyncio.create_task(load(loader, *[url_of(b"hangs")] * MOST_WAITING)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="257 images wait"):
            await load(loader, url_of(b"one more"))
        for task in many:
            task.cancel()
        os.kill(pool.pids[0], signal.SIGKILL)
        await asyncio.gather(slow, *many, return_exceptions=True)
        (await load(loader, url_of(b"one more"))).release()
    await pool.close()


async def test_one_request_with_many_images_holds_nobody_up(model: ModelConfig) -> None:
    pool = ProcessPool(Setup(model.path, 1, {}), 1, 60.0, SCRIPTED)
    async with loading(model, pool) as loader:
        many = asyncio.create_task(load(loader, *[url_of(b"%d" % i) for i in range(200)]))
        while not files_in(loader):
            await asyncio.sleep(0.01)
        begun = len(files_in(loader))
        one = await load(loader, url_of(b"one"))
        assert len(files_in(loader)) < begun + 40
        one.release()
        (await many).release()
    await pool.close()


async def test_equal_images_under_other_salts_share_no_file(model: ModelConfig) -> None:
    """Or the time that it takes would tell who sends what at present."""
    pool = ProcessPool(Setup(model.path, 1, {}), 1, 60.0, SCRIPTED)
    async with loading(model, pool) as loader:
        loaded = [await loader.load([SentImage(WHERE, url_of(b"one"))], {}, salt) for salt in ("a", "b", "a")]
        paths = [one.images[0].path for one in loaded]
        assert paths[0] == paths[2] != paths[1]
        for one in loaded:
            one.release()
    await pool.close()


async def test_a_server_that_cannot_process_images_says_so(model: ModelConfig) -> None:
    broken = ProcessPool(Setup(model.path, 1, {}), 1, 30.0, [*SCRIPTED, "broken"])
    async with loading(model, broken) as loader:
        with pytest.raises(OverloadedError, match="cannot process images now"):
            await load(loader, url_of(file_of(picture())))
    await broken.close()


@pytest.mark.slow  # a process of its own
async def test_a_model_whose_processor_nobody_knows_is_told_of(model: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    async with loading(model_at(tmp_path, vision=model.vision)) as loader:
        with pytest.raises(OverloadedError, match="cannot process images now"):
            await load(loader, url_of(file_of(picture())))


async def test_files_are_read_below_one_directory_and_nowhere_else(shared: Shared, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a b.png").write_bytes(file_of(picture()))
    (inside / "link.png").symlink_to(outside / "a b.png")
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "long.png").write_bytes(bytes(pictures.MAX_BYTES + 1))
    os.mkfifo(inside / "pipe")
    async with shared(allowed_local_media_path=str(inside)) as loader:
        for url in (f"file://{inside}/a%20b.png", f"file://localhost{inside}/../inside/a%20b.png"):
            assert await refusal(loader, url) == "TAKEN"
        for name in ("../outside/a%20b.png", "link.png", "loop", "pipe", "none.png", "", "%00",
                     "%2e%2e/outside/a b.png"):
            assert "no file below the directory" in await refusal(loader, f"file://{inside}/{name}"), name
        assert "no file below" in await refusal(loader, f"file://elsewhere{inside}/a%20b.png")
        assert "no file below" in await refusal(loader, f"file:/{outside}/a%20b.png")
        assert "bytes" in await refusal(loader, f"file://{inside}/long.png")
    (inside / "folder").symlink_to(outside)  # since its path was judged
    with pytest.raises(OSError, match="not this one"):
        _read_regular(inside / "folder" / "a b.png", 10**6)
