"""The client when something goes wrong in its own house: one request's fault stays that request's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from quire.engine.errors import EngineDeadError, QuireError
from quire.engine.frontend.engine_group import EngineGroup
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.request import Request
from quire.engine.messages import Accepted, Delta, Deltas, Loading, Part, Rejected, Started, Up
from tests.engine.frontend.test_engine_group import Engine, request, until


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    played = Engine(tmp_path, 0)
    await played.serve()
    yield played
    await played.end()


@pytest.fixture
async def group(engine: Engine) -> AsyncIterator[EngineGroup]:
    group = EngineGroup([engine.address])
    await asyncio.wait_for(group.wait_ready(), 10)
    yield group
    await group.close()


async def accepted(group: EngineGroup, name: str) -> Request:
    made = request(group, name)
    await asyncio.wait_for(group.submit(made), 10)
    return made


async def next_of(one: Request) -> SampleUpdate | None:
    return await asyncio.wait_for(one.next_update(), 10)


def breaks(*_: Any) -> Any:
    raise ZeroDivisionError("nobody foresaw it")


async def test_a_fault_in_one_requests_text_ends_it_alone_here_and_in_the_engine(group: EngineGroup,
                                                                                engine: Engine) -> None:
    sick, sound = await accepted(group, "sick"), await accepted(group, "sound")
    sick.generation.push = breaks  # type: ignore[method-assign]
    ids = [one.samples[0].id for one in (sick, sound)]
    await engine.say(Deltas([Delta(id, [7]) for id in ids]))
    with pytest.raises(ZeroDivisionError):
        await next_of(sick)
    update = await next_of(sound)
    assert update is not None
    assert update.token_ids == [7]
    await until(lambda: engine.aborted)
    assert engine.aborted == ids[:1]
    assert group.clients[0].load.total == request_load(sound)
    await engine.say(Deltas([Delta(ids[0], [8]), Delta(ids[1], [8], "length"), Delta(12345, [9])]))
    update = await next_of(sound)
    assert update is not None
    assert update.finish_reason == "length"
    assert (await accepted(group, "later")).error is None


def request_load(one: Request) -> int:
    return 128 * len(one.samples)  # its prompt is read


@pytest.mark.parametrize(("part", "word"), [
    ("_take_started", Started), ("_accept", Accepted), ("_reject", lambda ids: Rejected(ids, "invalid", "no"))])
async def test_a_fault_in_a_word_about_one_request_ends_it_alone(
        group: EngineGroup, engine: Engine, monkeypatch: pytest.MonkeyPatch, part: str,
        word: Callable[[list[int]], Up]) -> None:
    sick, sound = await accepted(group, "sick"), await accepted(group, "sound")
    with monkeypatch.context() as broken:
        broken.setattr(group.clients[0], part, breaks)
        await engine.say(word([sick.samples[0].id]))
        with pytest.raises(ZeroDivisionError):
            await next_of(sick)
    await engine.say(Deltas([Delta(sound.samples[0].id, [7], "length")]))
    assert await next_of(sound) is not None


async def test_what_was_produced_before_a_fault_is_shown_before_it(group: EngineGroup, engine: Engine) -> None:
    sick = await accepted(group, "sick")
    await engine.say(Deltas([Delta(sick.samples[0].id, [7])]))
    await until(lambda: sick.updates)
    sick.generation.push = breaks  # type: ignore[method-assign]
    await engine.say(Deltas([Delta(sick.samples[0].id, [8])]))
    await until(lambda: sick.error)
    assert await next_of(sick) is not None
    with pytest.raises(ZeroDivisionError):
        await next_of(sick)


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x92\xa6deltas\x91\x92\x01\xa3abc", b"\x91\xa7unknown",
                                   b"\x92\xa7loading\xa1\xff"])
async def test_a_frame_that_cannot_be_read_ends_what_it_may_have_been_about_and_no_more(
        group: EngineGroup, engine: Engine, frame: bytes) -> None:
    before = await accepted(group, "before")
    with capture_logs() as logs:
        await engine.send(frame)
        with pytest.raises(QuireError, match="could not be read"):
            await next_of(before)
    assert [(entry["event"], "exc_info" in entry) for entry in logs] == [("message of the engine cannot be read", True)]
    await until(lambda: engine.aborted == [before.samples[0].id])
    later = await accepted(group, "later")
    await engine.say(Deltas([Delta(later.samples[0].id, [7], "length")]))
    assert await next_of(later) is not None


async def test_a_frame_that_cannot_be_read_before_the_engine_is_ready_ends_the_connection(group: EngineGroup,
                                                                                        engine: Engine) -> None:
    one = await accepted(group, "one")
    await engine.fall()
    await until(lambda: group.state == "down")
    engine.rise()
    await until(lambda: group.state == "loading")
    await engine.send(b"")
    with pytest.raises(EngineDeadError, match="connection to the engine broke"):
        await next_of(one)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(group.watch(), 10)


async def test_an_engine_that_was_lost_is_as_far_as_the_one_that_follows(group: EngineGroup, engine: Engine) -> None:
    await engine.say(Loading("ready", 1.0))
    await until(lambda: group.loading == ("ready", 1.0))
    await engine.fall()
    await until(lambda: group.state == "down")
    assert group.loading == ("starting", 0.0)


async def test_a_request_that_cannot_be_sent_again_fails_alone_when_the_engine_is_back(group: EngineGroup,
                                                                                      engine: Engine) -> None:
    sick, sound = await accepted(group, "sick"), await accepted(group, "sound")
    await engine.fall()
    await until(lambda: group.state == "down")
    sick.cache_salt = "\ud800"  # no UTF-8
    engine.rise()
    await engine.serve()
    with pytest.raises(UnicodeEncodeError):
        await next_of(sick)
    await until(lambda: engine.submitted[2:] == ["sound"])
    await engine.say(Deltas([Delta(sound.samples[0].id, [7], "length")]))
    assert await next_of(sound) is not None


async def test_words_about_requests_that_are_gone_are_passed_over(group: EngineGroup, engine: Engine) -> None:
    one = await accepted(group, "one")
    await engine.say(Started([999, one.samples[0].id]))
    await until(lambda: one.started)
    group.clients[0].abort(one)
    await engine.say(Deltas([Delta(one.samples[0].id, [7])]))
    assert await next_of(one) is None


@pytest.mark.parametrize("part", ["_handle", "_send", "_lost"])
async def test_a_connection_that_breaks_ends_every_request_and_whoever_watches_it(
        group: EngineGroup, engine: Engine, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    one = await accepted(group, "one")
    watching = asyncio.create_task(group.watch())
    await asyncio.sleep(0)
    monkeypatch.setattr(group.clients[0], part, breaks)
    await (engine.fall() if part == "_lost" else engine.say(Started([])))
    with pytest.raises(EngineDeadError, match="nobody foresaw it"):
        await next_of(one)
    with pytest.raises(EngineDeadError, match="connection to the engine broke") as caught:
        await asyncio.wait_for(watching, 10)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(EngineDeadError):
        await group.submit(request(group, "later"))


async def test_the_client_remembers_where_in_its_prompt_a_request_may_be(group: EngineGroup, engine: Engine) -> None:
    """The step before the one that is told of may still run."""
    one = await accepted(group, "one")
    id = one.samples[0].id
    places = []
    for first, ids in ((0, [id]), (4, []), (8, [])):
        await engine.say(Started(ids, [Part(id, first, first + 4), Part(999, 0, 1)]))
        await until(lambda end=first + 4: one.place[1] == end)  # type: ignore[misc]
        places.append(one.place)
    assert places == [(0, 4), (0, 8), (4, 12)]
    assert one.started
