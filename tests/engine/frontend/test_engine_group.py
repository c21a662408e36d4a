"""Several engines behind one front, played by sockets that speak border 1 and say only what a test has them say."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from quire.engine.errors import EngineDeadError, OverloadedError, PoisonRequestError
from quire.engine.frontend import engine_group
from quire.engine.frontend.async_llm import _lose
from quire.engine.frontend.engine_group import EngineGroup
from quire.engine.frontend.engine_process import EngineProcess
from quire.engine.frontend.generation import Generation
from quire.engine.frontend.request import Request
from quire.engine.frontend.submission import samples
from quire.engine.messages import (
    NO_KEY,
    Abort,
    Accepted,
    Delta,
    Deltas,
    Down,
    EngineInfo,
    KeyLimits,
    Loading,
    Ready,
    Rejected,
    Sampling,
    Started,
    Submit,
    Up,
)
from quire.engine.sampling_params import SamplingParams

NUM = 2


class Engine:
    """Loads until `serve`; accepts what it gets while `accepts`."""

    def __init__(self, directory: Path, place: int, max_model_len: int = 100) -> None:
        self.address = f"ipc://{directory}/{place}.sock"
        self.accepts = True
        self.submitted: list[str] = []
        self.submits: list[Submit] = []
        self.aborted: list[int] = []
        self._place, self._max_model_len = place, max_model_len
        self._number = 0
        self._says: Up = Loading("loading weights", 0.25 + place / 4)
        self._workers: set[bytes] = set()
        self._context = zmq.asyncio.Context()
        self.rise()

    def rise(self) -> None:
        self._number += 1
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(self.address)
        self._task = asyncio.create_task(self._receive())

    async def fall(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close(linger=0)
        self._workers, self._says = set(), Loading("starting", 0.0)

    async def end(self) -> None:
        await self.fall()
        self._context.destroy(linger=0)

    def info(self) -> EngineInfo:
        return EngineInfo(
            model="m", dtype="float32", device="cpu", max_model_len=self._max_model_len, vocab_size=1000, num_blocks=8,
            block_size=16, kv_tokens=128, max_num_seqs=4, max_num_batched_tokens=64, max_logprobs=20,
            instance=f"{self._place}.{self._number}")

    async def serve(self) -> None:
        self._says = Ready(self.info())
        for worker in self._workers:
            await self.say(self._says, worker)

    async def say(self, message: Up, worker: bytes | None = None) -> None:
        for identity in [worker] if worker else self._workers:
            await self.send(msgspec.msgpack.encode(message), identity)

    async def send(self, frame: bytes, worker: bytes | None = None) -> None:
        for identity in [worker] if worker else self._workers:
            await self._socket.send_multipart([identity, frame])

    async def _receive(self) -> None:
        while True:
            worker, frame = await self._socket.recv_multipart()
            message = msgspec.msgpack.decode(frame, type=Down)
            if worker not in self._workers:
                self._workers.add(worker)
                await self.say(self._says, worker)
            if isinstance(message, Abort):
                self.aborted += message.ids
            if isinstance(message, Submit):
                self.submitted.append(message.request_id)
                self.submits.append(message)
                if self.accepts:
                    await self.say(Accepted([sample.id for sample in message.samples]), worker)


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[list[Engine]]:
    found = [Engine(tmp_path, place, max_model_len=100 - place) for place in range(NUM)]
    yield found
    for engine in found:
        await engine.end()


@contextlib.asynccontextmanager
async def front(engines: list[Engine], *, opened: bool = False,
                prefix_caching: bool = True) -> AsyncIterator[EngineGroup]:
    group = EngineGroup([engine.address for engine in engines], prefix_caching=prefix_caching, opened=opened)
    try:
        yield group
    finally:
        await group.close()


@pytest.fixture
async def group(engines: list[Engine]) -> AsyncIterator[EngineGroup]:
    """With all engines ready."""
    async with front(engines) as group:
        for engine in engines:
            await engine.serve()
        await asyncio.wait_for(group.wait_ready(), 10)
        yield group


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("did not happen within 10 s")


def request(group: EngineGroup, name: str = "r", key: KeyLimits = NO_KEY, num_tokens: int = 10) -> Request:
    params, prompt = SamplingParams(max_tokens=5), [1] * num_tokens
    return Request(name, prompt, Sampling(), samples(params, group.new_ids(1), 1),
                   Generation(params, prompt, None, 1), key=key)


async def place_of(group: EngineGroup, **options: object) -> int:
    client = await asyncio.wait_for(group.submit(request(group, **options)), 10)  # type: ignore[arg-type]
    return group.clients.index(client)


async def test_they_open_when_all_are_ready_and_stay_open_while_one_is(engines: list[Engine]) -> None:
    async with front(engines) as group:
        await until(lambda: group.loading == ("loading weights", 0.25))
        await engines[0].serve()
        await until(lambda: group.clients[0].state == "ready")
        assert (group.state, group.info, group.loading) == ("loading", None, ("loading weights", 0.5))
        with pytest.raises(OverloadedError, match="not ready yet"):
            group.require_info()
        await engines[1].serve()
        await until(lambda: group.state == "ready")
        assert group.require_info().max_model_len == 99, "what fits every engine"
        await engines[0].fall()
        await until(lambda: group.clients[0].state == "down")
        assert group.state == "ready"
        assert [await place_of(group) for _ in range(3)] == [1, 1, 1]
        await engines[1].fall()
        await until(lambda: group.state == "down")


async def test_a_worker_that_comes_later_is_content_with_one(engines: list[Engine]) -> None:
    async with front(engines, opened=True) as group:
        await engines[1].serve()
        await until(lambda: group.state == "ready")
        assert await place_of(group) == 1


async def test_requests_are_shared_out_and_a_finished_one_makes_room(group: EngineGroup, engines: list[Engine]) -> None:
    first = request(group)
    places = [group.clients.index(await group.submit(first)), await place_of(group)]
    assert sorted(places) == [0, 1]
    assert len({client.load.total for client in group.clients}) == 1
    await engines[places[0]].say(Deltas([Delta(first.samples[0].id, [7], "length")]))
    await until(lambda: first.generation.finished)
    assert group.clients[places[0]].load.total == 0
    assert await place_of(group) == places[0]


@pytest.mark.parametrize("cached", [True, False])
async def test_a_beginning_draws_requests_only_where_engines_keep_it(engines: list[Engine], cached: bool) -> None:
    async with front(engines, prefix_caching=cached) as group:
        for engine in engines:
            await engine.serve()
        await asyncio.wait_for(group.wait_ready(), 10)
        first = request(group, num_tokens=200)
        place = group.clients.index(await group.submit(first))
        await engines[place].say(Deltas([Delta(first.samples[0].id, [7])]))
        await until(lambda: first.updates)
        assert await place_of(group, num_tokens=200) == (place if cached else 1 - place)


async def test_what_no_engine_accepted_yet_goes_to_another_when_its_own_is_lost(group: EngineGroup,
                                                                               engines: list[Engine]) -> None:
    for engine in engines:
        engine.accepts = False
    task = asyncio.create_task(group.submit(request(group, "r")))
    await until(lambda: any(engine.submitted for engine in engines))
    lost = next(place for place, engine in enumerate(engines) if engine.submitted)
    engines[1 - lost].accepts = True
    await engines[lost].fall()
    client = await asyncio.wait_for(task, 10)
    assert client is group.clients[1 - lost]
    assert engines[1 - lost].submitted == ["r"]
    assert group.clients[lost].load.total == 0


async def test_with_all_away_a_request_goes_to_the_first_that_comes_back(group: EngineGroup,
                                                                         engines: list[Engine]) -> None:
    for engine in engines:
        await engine.fall()
    await until(lambda: group.state == "down")
    tasks = [asyncio.create_task(group.submit(request(group, str(number)))) for number in range(4)]
    await asyncio.sleep(0)
    engines[1].rise()
    await engines[1].serve()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 10) == [group.clients[1]] * 4


async def test_an_accepted_request_waits_for_its_own_engine(group: EngineGroup, engines: list[Engine]) -> None:
    accepted = request(group, "stays")
    place = group.clients.index(await group.submit(accepted))
    await engines[place].fall()
    await until(lambda: group.clients[place].state == "down")
    engines[place].rise()
    await engines[place].serve()
    await until(lambda: engines[place].submitted == ["stays", "stays"])
    assert accepted.num_resumed == 1
    assert engines[1 - place].submitted == []


GONE = EngineDeadError("gone for good")


async def lose(group: EngineGroup, engines: list[Engine], place: int) -> None:
    await engines[place].fall()
    await asyncio.wait_for(group.lose(place, GONE), 10)


async def test_what_an_engine_had_accepted_goes_on_at_another_when_it_is_gone_for_good(group: EngineGroup,
                                                                                      engines: list[Engine]) -> None:
    moved = request(group, "moved")
    id = moved.samples[0].id
    place = group.clients.index(await group.submit(moved))
    await engines[place].say(Deltas([Delta(id, [7, 8])]))
    await until(lambda: moved.updates)
    other = engines[1 - place]
    await lose(group, engines, place)
    await until(lambda: other.submits)
    [sent] = other.submits
    assert sent.resumed
    assert (sent.samples[0].output_token_ids, sent.samples[0].seed) == ([7, 8], moved.samples[0].seed)
    await other.say(Deltas([Delta(id, [9], "length")]))
    updates = [await asyncio.wait_for(moved.next_update(), 10) for _ in range(3)]
    assert [update and update.token_ids for update in updates] == [[7, 8], [9], None]
    assert moved.num_resumed == 1
    assert (group.state, group.clients[place].state) == ("ready", "gone")
    assert [await place_of(group) for _ in range(3)] == [1 - place] * 3
    assert group.clients[place].load.total == 0


@pytest.mark.parametrize("accepted", [True, False])
async def test_what_a_gone_engine_had_waits_for_one_that_may_come_back(group: EngineGroup, engines: list[Engine],
                                                                      accepted: bool) -> None:
    group._router._order = [0, 1]  # type: ignore[union-attr]
    engines[0].accepts = accepted
    task = asyncio.create_task(group.submit(request(group, "moved")))
    await until(lambda: engines[0].submitted == ["moved"])
    if accepted:
        await asyncio.wait_for(task, 10)
    await engines[1].fall()
    await until(lambda: group.clients[1].state == "down")
    await lose(group, engines, 0)
    assert group.state == "down"
    engines[1].rise()
    await engines[1].serve()
    await until(lambda: engines[1].submitted == ["moved"])
    await asyncio.wait_for(task, 10)


async def test_with_the_last_engine_all_ends_with_an_error(group: EngineGroup, engines: list[Engine]) -> None:
    requests = [request(group, str(number)) for number in range(2)]
    for each in requests:
        await group.submit(each)
    for place, engine in enumerate(engines):
        engine.accepts = False
        await lose(group, engines, place)
    for each in requests:
        with pytest.raises(EngineDeadError, match="gone for good"):
            await asyncio.wait_for(each.next_update(), 10)
    with pytest.raises(EngineDeadError, match="gone for good"):
        await group.submit(request(group))
    assert group.state == "gone"


async def test_a_program_hears_of_its_own_engines_end_and_serves_on_with_the_other(group: EngineGroup,
                                                                                  engines: list[Engine]) -> None:
    heard: list[tuple[int, str, bool]] = []
    processes = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    process: Any = SimpleNamespace(_processes=processes, _oom_kills=SimpleNamespace(cause=lambda code: "killed"))

    def on_end(place: int, error: EngineDeadError, killed: bool) -> None:
        heard.append((place, str(error), killed))
        _lose(loop, group, place, error, killed)

    loop = asyncio.get_running_loop()
    EngineProcess.watch(process, on_end)
    processes[1].kill()
    await engines[1].fall()
    await until(lambda: group.clients[1].state == "gone")
    assert heard == [(1, "The engine process was killed (SIGKILL).", True)]
    assert group.state == "ready"
    assert await place_of(group) == 0
    processes[0].terminate()
    await engines[0].fall()
    await until(lambda: group.state == "gone")
    assert [killed for _, _, killed in heard] == [True, False]


def test_an_end_after_that_of_the_loop_troubles_nobody() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    nobody: Any = SimpleNamespace()
    nobody.lose = partial(EngineGroup.lose, nobody)
    _lose(loop, nobody, 0, GONE, False)


async def test_before_they_opened_the_loss_of_one_is_that_of_all(engines: list[Engine]) -> None:
    async with front(engines) as group:
        await engines[0].serve()
        waiting = asyncio.create_task(group.wait_ready())
        await lose(group, engines, 1)
        with pytest.raises(EngineDeadError, match="gone for good"):
            await asyncio.wait_for(waiting, 10)
        assert group.state == "gone"


async def test_a_worker_that_missed_the_opening_serves_on_with_those_left(engines: list[Engine]) -> None:
    async with front(engines) as group:
        await engines[0].serve()
        await until(lambda: group.clients[0].state == "ready")
        await group.lose(1, GONE, opened=True)
        assert group.state == "ready"
        assert await place_of(group) == 0


async def test_a_request_that_it_seems_to_have_died_of_moves_nowhere(group: EngineGroup, engines: list[Engine]) -> None:
    deadly, innocent = request(group, "deadly"), request(group, "innocent")
    key = KeyLimits("k", max_concurrent=9)
    deadly.key = innocent.key = key
    place = group.clients.index(await group.submit(deadly))
    await group.submit(innocent)
    await engines[place].say(Started([deadly.samples[0].id]))
    await until(lambda: deadly.started)
    deadly.suspicion = 2  # it was there when the engine before this one broke
    await lose(group, engines, place)
    with pytest.raises(PoisonRequestError):
        await asyncio.wait_for(deadly.next_update(), 10)
    await until(lambda: engines[1 - place].submitted == ["innocent"])


async def test_keys_of_an_engine_that_is_gone_have_one_new_home_in_all_workers(group: EngineGroup,
                                                                               engines: list[Engine]) -> None:
    async with front(engines) as other:
        await asyncio.wait_for(other.wait_ready(), 10)
        keys = [KeyLimits(name, max_concurrent=9) for name in "abcdef"]
        homes = [await place_of(group, key=key) for key in keys]
        assert set(homes) == {0, 1}
        await engines[0].fall()
        for each in (group, other):
            await each.lose(0, GONE)
        assert {await place_of(each, key=key) for each in (group, other) for key in keys} == {1}
        assert len(engines[1].submitted) == len(keys) * 3, "those that ran at the other came here too"


class DyingEngine(threading.Thread):
    """Takes a request up and ends, whatever the worker's loop does meanwhile."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self._address, self._info = engine.address, engine.info()
        self.start()

    def run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as connection:
            connection.bind(self._address)
            while True:
                worker, frame = connection.recv_multipart()
                message = msgspec.msgpack.decode(frame, type=Down)
                says: list[Up] = [Ready(self._info)]
                if isinstance(message, Submit):
                    ids = [sample.id for sample in message.samples]
                    says = [Accepted(ids), Started(ids)]
                for one in says:
                    connection.send_multipart([worker, msgspec.msgpack.encode(one)])
                if isinstance(message, Submit):
                    time.sleep(0.1)
                    return


async def test_what_an_engine_said_before_its_end_is_heard_before_its_end(engines: list[Engine]) -> None:
    """Else a request that it died of would move to the next engine as if no engine had ever begun it."""
    await engines[1].serve()
    for number in range(10):
        await engines[0].fall()
        dying = DyingEngine(engines[0])
        async with front(engines) as group:
            group._router._order = [0, 1]
            await asyncio.wait_for(group.wait_ready(), 10)
            task = asyncio.create_task(group.submit(request(group, str(number))))
            await asyncio.sleep(0)
            dying.join(10)
            time.sleep(0.1)  # its words and its end wait together, for a loop that is busy
            assert await asyncio.wait_for(task, 10) is group.clients[0]
            await asyncio.sleep(0.05)
        engines[0].rise()
    assert engines[1].submitted == []


async def test_a_limited_key_keeps_to_one_engine_whatever_its_load(group: EngineGroup, engines: list[Engine]) -> None:
    async with front(engines) as other:
        await asyncio.wait_for(other.wait_ready(), 10)
        for name in ("a", "b", "c"):
            key = KeyLimits(name, requests_per_minute=100)
            assert len({await place_of(each, key=key) for each in (group, other) for _ in range(3)}) == 1


async def test_a_silent_engine_gets_no_new_requests_but_keeps_its_limited_keys(
        group: EngineGroup, engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    key = KeyLimits("k", max_concurrent=9)
    home = await place_of(group, key=key)
    monkeypatch.setattr(engine_group, "QUIET_S", 0.1)
    speaks = asyncio.create_task(_keep_speaking(engines[1 - home]))
    await asyncio.sleep(0.3)
    assert [await place_of(group) for _ in range(5)] == [1 - home] * 5
    assert await place_of(group, key=key) == home
    speaks.cancel()


async def _keep_speaking(engine: Engine) -> None:
    while True:
        await engine.say(Loading("ready", 1.0))
        await asyncio.sleep(0.01)


async def test_one_full_queue_does_not_close_the_door_and_a_keys_own_limit_does(group: EngineGroup,
                                                                               engines: list[Engine]) -> None:
    async def refusal(kind: str, reason: str) -> OverloadedError:
        for engine in engines:
            engine.accepts = False
            engine.submitted.clear()
        asked = request(group)
        task = asyncio.create_task(group.submit(asked))
        await until(lambda: any(engine.submitted for engine in engines))
        for engine in engines:
            await engine.say(Rejected([asked.samples[0].id], kind, "no", reason=reason, closed_s=0.5))
        with pytest.raises(OverloadedError) as caught:
            await asyncio.wait_for(task, 10)
        return caught.value

    assert (await refusal("overloaded", "queue_requests")).closed_s == 0
    assert (await refusal("limit", "key_requests")).closed_s == 0.5
    assert all(client.load.total == 0 for client in group.clients)


async def test_when_one_is_gone_for_good_all_is(group: EngineGroup) -> None:
    group.fail_all(EngineDeadError("gone"))
    with pytest.raises(EngineDeadError):
        group.require_info()
    assert group.state == "gone"
