"""Two engines behind two HTTP workers: the same tokens as from one, work for both, and only its own requests feel the
loss of an engine."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest

from quire import LLM, AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from quire.app.keys.key import Key, digest_of, new_secret
from quire.app.keys.key_file import write_key_file
from tests.e2e.server import KEY, Server, alive, serving, until

MODEL = "smollm2-135m-instruct"
NOW = datetime.now(timezone.utc)
SECRETS = {name: new_secret() for name in ("admin", "rated", "narrow")}
KEYS = [Key(name="admin", sha256=digest_of(SECRETS["admin"]), created=NOW, admin=True),
        Key(name="rated", sha256=digest_of(SECRETS["rated"]), created=NOW, requests_per_minute=3),
        Key(name="narrow", sha256=digest_of(SECRETS["narrow"]), created=NOW, max_concurrent=2)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = str(tmp_path_factory.mktemp("pair") / "keys.yaml")
    write_key_file(keys, KEYS)
    with serving("--host", "127.0.0.1", "-asc", "2", "--data-parallel-size", "2", "--api-key-file", keys) as server:
        yield server


class Stream(threading.Thread):
    """A streamed completion of one seed, and when each of its tokens came."""

    def __init__(self, server: Server, seed: int, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self._client = server.client(timeout=100)
        self._seed, self._max_tokens = seed, max_tokens
        self.text = ""
        self.times: list[float] = []
        self.left = False
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._client, self._client.completions.create(
                    model=MODEL, prompt=f"Story number {self._seed} begins", seed=self._seed, temperature=0.8,
                    max_tokens=self._max_tokens, stream=True, extra_body={"ignore_eos": True}) as chunks:
                for chunk in chunks:
                    self.text += chunk.choices[0].text
                    self.times.append(time.monotonic())
                    if self.left:
                        return
        except Exception as error:
            self.error = error

    def result(self) -> str:
        self.join(100)
        assert not self.is_alive()
        assert self.error is None
        return self.text


def texts(server: Server, seeds: range, max_tokens: int) -> list[str]:
    streams = [Stream(server, seed, max_tokens) for seed in seeds]
    return [stream.result() for stream in streams]


def of_engine(server: Server, name: str, place: int) -> float:
    found = re.search(rf'^{name}{{engine="{place}",[^}}]*}} (\S+)$', server.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def engine_pid(server: Server, place: int) -> int:
    (pid,) = [pid for pid in server.pids()["engine"]
              if f"engine-{place}.sock" in Path(f"/proc/{pid}/cmdline").read_text()]
    return pid


def ask(server: Server, secret: str, max_tokens: int) -> int:
    """On a connection of its own, so that either worker may get it."""
    return httpx.post(f"{server.url}/v1/completions", headers={"authorization": f"Bearer {secret}"}, timeout=60, json={
        "prompt": "The sea", "max_tokens": max_tokens, "ignore_eos": True}).status_code


def statuses(server: Server, secret: str, count: int, max_tokens: int) -> list[int]:
    with ThreadPoolExecutor(count) as pool:
        return sorted(pool.map(lambda _: ask(server, secret, max_tokens), range(count)))


def test_two_engines_give_what_one_gives_and_both_work(server: Server, pair: Server) -> None:
    assert len(pair.pids()["engine"]) == 2
    before = [of_engine(pair, "quire:engine_steps_total", place) for place in range(2)]
    assert texts(pair, range(8), 24) == texts(server, range(8), 24)
    for place in range(2):
        until(lambda place=place: of_engine(pair, "quire:engine_steps_total", place) - before[place] >= 24)


def test_a_keys_limits_are_exact_over_engines_and_workers(pair: Server) -> None:
    assert statuses(pair, SECRETS["rated"], 8, 1) == [200] * 3 + [429] * 5
    assert statuses(pair, SECRETS["narrow"], 6, 40) == [200] * 2 + [429] * 4


def test_admins_see_each_engine(pair: Server) -> None:
    told = httpx.get(f"{pair.url}/admin/status", headers={"authorization": f"Bearer {SECRETS['admin']}"}).json()
    assert [engine["state"] for engine in told["engines"]] == ["ready", "ready"]
    assert len({engine["info"]["instance"] for engine in told["engines"]}) == 2


def test_each_engines_log_lines_say_which_it_is(pair: Server) -> None:
    assert sorted(event["engine"] for event in pair.events("engine ready")) == [0, 1]


def test_a_worker_to_come_will_know_that_all_engines_were_ready(pair: Server) -> None:
    address = re.search(r"ipc://(.*)/engine-0.sock", Path(f"/proc/{engine_pid(pair, 0)}/cmdline").read_text())
    assert address is not None
    assert Path(address[1], "opened").exists()


@pytest.mark.slow
def test_the_loss_of_an_engine_pauses_its_requests_and_no_others(server: Server, pair: Server) -> None:
    undisturbed = texts(server, range(100, 101), 150)
    struck = Stream(pair, 100, 150)
    until(lambda: [of_engine(pair, "vllm:num_requests_running", place) for place in range(2)].count(1) == 1)
    place = int(of_engine(pair, "vllm:num_requests_running", 1))
    other = Stream(pair, 101, 900)
    until(lambda: len(other.times) >= 3)
    assert len(struck.times) < 150
    killed, at = engine_pid(pair, place), time.monotonic()
    os.kill(killed, signal.SIGKILL)
    until(lambda: not alive(killed))
    while len(pair.events("ready")) < 2:
        assert pair.get("/readyz").status_code == 200
        assert ask(pair, KEY, 1) == 200
        time.sleep(0.1)
    assert [struck.result()] == undisturbed
    other.left = True
    other.result()
    back = next(moment for moment in struck.times if moment > at + 1)
    pauses = [b - a for a, b in zip(other.times, other.times[1:]) if b > at and a < back]
    assert max(pauses) < (back - at) / 2, "for as long as a load takes"
    ended, resubmitted = pair.events("engine ended"), pair.events("requests resubmitted")
    assert [event["engine"] for event in [*ended, *resubmitted]] == [place, place]
    assert pair.metric("quire:engine_restarts_total") == 1


@pytest.mark.slow
@pytest.mark.parametrize("split", ["--tensor-parallel-size=3", "--pipeline-parallel-size=2"])
def test_engines_of_several_ranks_give_what_one_gives_through_the_loss_of_all(server: Server, split: str) -> None:
    expected = texts(server, range(4), 24)
    with serving("--data-parallel-size", "2", "--device", "cpu", split) as pair:
        assert texts(pair, range(4), 24) == expected
        struck = [Stream(pair, seed, 24) for seed in range(4)]
        until(lambda: all(stream.times for stream in struck))
        for pid in pair.pids()["engine"]:
            os.kill(pid, signal.SIGKILL)
        assert [stream.result() for stream in struck] == expected
        assert len(pair.events("requests resubmitted")) == 2


@pytest.mark.slow
async def test_a_program_of_its_own_may_have_two_engines_too() -> None:
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(data_parallel_size=2, max_model_len=512, cpu_threads=1))
    prompts = [f"Story number {number} begins" for number in range(6)]
    params = [SamplingParams(seed=seed, max_tokens=20, ignore_eos=True) for seed in range(6)]

    async def ask(number: int) -> list[int]:
        outputs = [output async for output in engine.generate(prompts[number], params[number], str(number))]
        return list(outputs[-1].outputs[0].token_ids)

    found = await asyncio.gather(*map(ask, range(6)))
    expected = LLM(max_model_len=512, cpu_threads=1).generate(prompts, params, use_tqdm=False)
    assert found == [list(output.outputs[0].token_ids) for output in expected]
    await asyncio.sleep(1.5)
    assert all(one.status is not None and one.status.generation_tokens >= 20 for one in engine.engines)
    assert sum(one.status.generation_tokens for one in engine.engines if one.status) == 120
    await engine.close()


def test_a_drain_lets_both_engines_finish_and_ends_with_zero(server: Server, pair: Server) -> None:
    undisturbed = texts(server, range(200, 202), 60)
    streams = [Stream(pair, seed, 60) for seed in range(200, 202)]
    until(lambda: all(stream.times for stream in streams))
    engines = pair.pids()["engine"]
    pair.process.send_signal(signal.SIGTERM)
    assert [stream.result() for stream in streams] == undisturbed
    assert pair.wait_exit() == 0
    assert not any(alive(pid) for pid in engines)
