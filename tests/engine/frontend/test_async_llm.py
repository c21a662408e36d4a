"""AsyncLLMEngine before an engine that is played by a socket, so that a test decides when each answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, InvalidRequestError, MisuseError
from quire.engine.frontend import async_llm
from quire.engine.frontend.async_llm import AsyncEngineArgs, AsyncLLMEngine
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.outputs import OutputBuilder, RequestOutput
from quire.engine.messages import Delta, Deltas, Started
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from tests.engine.frontend.test_engine_group import Engine, until

FIRST = 1  # the first request's sample id


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    played = Engine(tmp_path, 0)
    yield played
    await played.end()


@pytest.fixture
async def llm(engine: Engine) -> AsyncIterator[AsyncLLMEngine]:
    front = await AsyncLLMEngine.connect([engine.address], EngineArgs(skip_tokenizer_init=True))
    yield front
    await front.close()


async def outputs(llm: AsyncLLMEngine, request_id: str, token: int = 5) -> list[RequestOutput]:
    params = SamplingParams(max_tokens=1, detokenize=False)
    return [output async for output in llm.generate({"prompt_token_ids": [token]}, params, request_id)]


async def test_of_two_requests_with_one_id_at_once_the_second_is_refused(llm: AsyncLLMEngine, engine: Engine) -> None:
    first = asyncio.create_task(outputs(llm, "twice"))
    second = asyncio.create_task(outputs(llm, "twice"))
    await asyncio.sleep(0)  # both wait for the engine, or would
    await engine.serve()
    await until(lambda: engine.submitted)
    await engine.say(Deltas([Delta(FIRST, [7], "length"), Delta(FIRST + 1, [7], "length")]))
    with pytest.raises(InvalidRequestError, match="request_id 'twice' is already running"):
        await asyncio.wait_for(second, 10)
    assert [output.finished for output in await asyncio.wait_for(first, 10)] == [True]
    assert engine.submitted == ["twice"]


async def test_an_id_is_free_again_after_a_refusal_a_cancellation_and_an_end(llm: AsyncLLMEngine,
                                                                            engine: Engine) -> None:
    early = asyncio.create_task(outputs(llm, "again"))
    await asyncio.sleep(0)
    early.cancel()
    await asyncio.gather(early, return_exceptions=True)
    await engine.serve()
    with pytest.raises(InvalidRequestError, match="this model's ids are"):
        await outputs(llm, "again", token=1000)
    for id in (FIRST, FIRST + 1):
        task = asyncio.create_task(outputs(llm, "again"))
        await until(lambda id=id: len(engine.submitted) == id)  # type: ignore[misc]
        await engine.say(Deltas([Delta(id, [7], "length")]))
        assert len(await asyncio.wait_for(task, 10)) == 1


async def test_the_metrics_say_when_a_step_took_the_request_up(llm: AsyncLLMEngine, engine: Engine) -> None:
    await engine.serve()
    task = asyncio.create_task(outputs(llm, "r"))
    await until(lambda: engine.submitted)
    await asyncio.sleep(0.1)
    await engine.say(Started([FIRST]))
    await asyncio.sleep(0.1)
    await engine.say(Deltas([Delta(FIRST, [7], "length")]))
    (output,) = await asyncio.wait_for(task, 10)
    assert output.metrics is not None
    assert output.metrics.scheduled_ts is not None
    assert output.metrics.scheduled_ts - output.metrics.queued_ts > 0.09
    assert output.metrics.first_token_ts - output.metrics.scheduled_ts > 0.09


@pytest.mark.parametrize(("name", "value"), [
    ("sampling_params", {"max_tokens": 1}), ("priority", "high"), ("priority", 1.5), ("priority", 2**70),
    ("request_id", 5), ("lora_request", 5), ("trace_headers", {"traceparent": "00"}),
])
async def test_what_the_engine_could_not_read_is_refused_here(llm: AsyncLLMEngine, engine: Engine, name: str,
                                                              value: Any) -> None:
    await engine.serve()
    arguments = {"sampling_params": SamplingParams(max_tokens=1, detokenize=False), "request_id": "r", name: value}
    with pytest.raises(InvalidRequestError) as caught:
        await asyncio.wait_for(anext(llm.generate([5], **arguments)), 10)
    assert caught.value.param == name
    assert not engine.submitted


def test_arguments_of_vllms_engine_are_taken_where_they_ask_for_nothing():
    assert AsyncEngineArgs(max_model_len=512, quantization=None, disable_log_stats=True).max_model_len == 512
    with pytest.raises(ConfigError, match="rope_theta: 5 is not supported"):
        AsyncEngineArgs(rope_theta=5)
    assert AsyncEngineArgs(disable_log_requests=True, engine_use_ray=False, rope_scaling=None).model  # of older ones
    with pytest.raises(ConfigError, match="there is no engine argument 'max_model_length'"):
        AsyncEngineArgs(max_model_length=512)


@pytest.mark.parametrize(("kind", "texts"), [
    (RequestOutputKind.CUMULATIVE, [[7], [7]]), (RequestOutputKind.DELTA, [[7], []]),
    (RequestOutputKind.FINAL_ONLY, [[7]])])
async def test_the_last_output_of_an_aborted_request_says_so_and_has_what_there_was(
        llm: AsyncLLMEngine, engine: Engine, kind: RequestOutputKind, texts: list[list[int]]) -> None:
    await engine.serve()
    params = SamplingParams(max_tokens=9, detokenize=False, output_kind=kind)
    found: list[tuple[list[int], bool, str | None]] = []

    async def read() -> None:
        async for output in llm.generate([5], params, "r"):
            found.append((list(output.outputs[0].token_ids), output.finished, output.outputs[0].finish_reason))

    task = asyncio.create_task(read())
    await until(lambda: engine.submitted)
    await engine.say(Deltas([Delta(FIRST, [7])]))
    await until(lambda: len(found) == len(texts) - 1)
    await asyncio.sleep(0.05)
    await llm.abort("r")
    await asyncio.wait_for(task, 10)
    assert found == [(tokens, last, "abort" if last else None)
                     for tokens, last in zip(texts, [False] * (len(texts) - 1) + [True])]
    await until(lambda: engine.aborted == [FIRST])
    await llm.abort("r")  # is over, or never was


async def test_of_a_request_that_is_aborted_samples_that_ended_keep_their_end(llm: AsyncLLMEngine,
                                                                            engine: Engine) -> None:
    await engine.serve()
    params = SamplingParams(n=2, max_tokens=9, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)

    async def read() -> list[RequestOutput]:
        return [output async for output in llm.generate([5], params, "r")]

    task = asyncio.create_task(read())
    await until(lambda: engine.submitted)
    await engine.say(Deltas([Delta(FIRST, [7], "stop")]))
    await asyncio.sleep(0.1)
    await llm.abort("r")
    [output] = await asyncio.wait_for(task, 10)
    assert output.finished
    assert [sample.finish_reason for sample in output.outputs] == ["stop", "abort"]


async def test_a_request_that_the_engine_has_not_accepted_yet_can_be_aborted(llm: AsyncLLMEngine,
                                                                             engine: Engine) -> None:
    tasks = [asyncio.create_task(outputs(llm, name)) for name in ("a", "b")]
    await asyncio.sleep(0.1)  # both wait for the engine
    await llm.abort(["a", "b", "unknown"])
    await engine.serve()
    for outputs_of in await asyncio.wait_for(asyncio.gather(*tasks), 10):
        assert [(output.finished, output.outputs[0].finish_reason) for output in outputs_of] == [(True, "abort")]


async def test_an_output_that_cannot_be_built_ends_its_request_alone(llm: AsyncLLMEngine, engine: Engine,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.serve()
    build = OutputBuilder.push

    def push(self: OutputBuilder, update: SampleUpdate) -> RequestOutput | None:
        assert self._request_id != "sick", "nobody foresaw it"
        return build(self, update)

    monkeypatch.setattr(OutputBuilder, "push", push)
    sick, sound = (asyncio.create_task(outputs(llm, name)) for name in ("sick", "sound"))
    await until(lambda: len(engine.submitted) == 2)
    await engine.say(Deltas([Delta(FIRST, [7]), Delta(FIRST + 1, [7], "length")]))
    with pytest.raises(AssertionError, match="nobody foresaw it"):
        await asyncio.wait_for(sick, 10)
    assert [output.finished for output in await asyncio.wait_for(sound, 10)] == [True]
    await until(lambda: engine.aborted == [FIRST])


async def test_in_another_event_loop_it_says_what_to_do_at_once(llm: AsyncLLMEngine, engine: Engine) -> None:
    await engine.serve()
    with pytest.raises(MisuseError, match="run_coroutine_threadsafe"):
        await asyncio.to_thread(asyncio.run, outputs(llm, "r"))
    with pytest.raises(MisuseError, match="run_coroutine_threadsafe"):
        await asyncio.to_thread(asyncio.run, llm.abort("r"))
    assert not engine.submitted


def test_after_its_event_loop_is_closed_it_says_so_and_can_be_closed(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[str] = []

    async def first() -> AsyncLLMEngine:
        played = Engine(tmp_path, 0)
        llm = await AsyncLLMEngine.connect([played.address], EngineArgs(skip_tokenizer_init=True))
        monkeypatch.setattr(llm, "_process", SimpleNamespace(stop=lambda: stops.append("stopped")))
        assert llm._group is not None
        await llm._group.close()
        await played.end()
        return llm

    llm = asyncio.run(first())
    with pytest.raises(MisuseError, match=r"each asyncio\.run"):
        asyncio.run(outputs(llm, "r"))
    asyncio.run(llm.close())
    assert stops == ["stopped"]


async def test_a_child_that_was_forked_says_so_and_ends_no_engine_of_its_parent(llm: AsyncLLMEngine, engine: Engine,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.serve()
    with monkeypatch.context() as in_child:
        in_child.setattr(async_llm.os, "getpid", lambda: -1)
        in_child.setattr(llm, "_process", SimpleNamespace(stop=lambda: pytest.fail("the parent's")))
        with pytest.raises(MisuseError, match="spawn"):
            await outputs(llm, "r")
        await llm.close()
    assert llm.state != "down"


async def test_closing_twice_is_closing_once(llm: AsyncLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[str] = []
    monkeypatch.setattr(llm, "_process", SimpleNamespace(stop=lambda: stops.append("stopped")))
    await llm.close()
    await llm.close()
    assert stops == ["stopped"]
