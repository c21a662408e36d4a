"""OpenAI's own SDK, and curl as people type it, against the real server, engine and weights."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import openai
import pytest

from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import KEY, Server, until

ASK: list[Any] = [{"role": "system", "content": "You are a helpful assistant."},
                  {"role": "user", "content": "What is the capital of France?"}]


def test_chat_answers(server: Server) -> None:
    reply = server.client().chat.completions.create(model=DEFAULT_MODEL, messages=ASK, temperature=0, max_tokens=30)
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.choices[0].finish_reason == "stop"


def test_a_stream_adds_up_to_the_whole_reply(server: Server) -> None:
    client = server.client()
    whole = client.chat.completions.create(model=DEFAULT_MODEL, messages=ASK, temperature=0, max_tokens=24)
    chunks = list(client.chat.completions.create(model=DEFAULT_MODEL, messages=ASK, temperature=0, max_tokens=24,
                                                 stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 4, "the reply came in pieces"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == (whole.usage.completion_tokens if whole.usage else None)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_seed_gives_the_same_samples_again(server: Server) -> None:
    def sample(seed: int) -> list[str | None]:
        reply = server.client().chat.completions.create(model=DEFAULT_MODEL, messages=ASK, n=3, seed=seed,
                                                        temperature=1.5, max_tokens=6)
        return [choice.message.content for choice in sorted(reply.choices, key=lambda c: c.index)]

    first = sample(1)
    assert sample(1) == first
    assert sample(2) != first
    assert len(set(first)) > 1


def test_a_stop_string_ends_the_text_before_it(server: Server) -> None:
    client = server.client()
    whole = client.completions.create(model=DEFAULT_MODEL, prompt="1, 2, 3, 4, 5,", temperature=0, max_tokens=24)
    assert "8" in whole.choices[0].text
    cut = client.completions.create(model=DEFAULT_MODEL, prompt="1, 2, 3, 4, 5,", temperature=0, max_tokens=24,
                                    stop=["8"])
    assert cut.choices[0].text == whole.choices[0].text.split("8")[0]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].model_extra == {"stop_reason": "8", "prompt_logprobs": None}


def test_logprobs_are_those_of_the_text(server: Server) -> None:
    reply = server.client().chat.completions.create(model=DEFAULT_MODEL, messages=ASK, temperature=0, max_tokens=8,
                                                    logprobs=True, top_logprobs=3)
    table = reply.choices[0].logprobs
    assert table is not None
    assert table.content is not None
    content = reply.choices[0].message.content or ""
    assert "".join(t.token for t in table.content).startswith(content)
    for token in table.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-4), "greedy takes the likeliest"
        assert bytes(token.bytes or []).decode(errors="replace") == token.token


def test_several_prompts_and_token_ids(server: Server) -> None:
    client = server.client()
    ids = server_tokenize(server, "The sky is")
    reply = client.completions.create(model=DEFAULT_MODEL, prompt=["The sky is", "One plus one is"], temperature=0,
                                      max_tokens=5, echo=True)
    same = client.completions.create(model=DEFAULT_MODEL, prompt=[ids], temperature=0, max_tokens=5, echo=True)
    assert [c.index for c in reply.choices] == [0, 1]
    assert reply.choices[0].text == same.choices[0].text
    assert reply.choices[0].text.startswith("The sky is")


def server_tokenize(server: Server, text: str) -> list[int]:
    import httpx

    reply = httpx.post(f"{server.url}/tokenize", json={"prompt": text}, headers={"authorization": f"Bearer {KEY}"})
    tokens: list[int] = reply.json()["tokens"]
    return tokens


def test_errors_are_the_sdks_own(server: Server) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="nope", messages=ASK)
    with pytest.raises(openai.AuthenticationError):
        server.client(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model=DEFAULT_MODEL, messages=ASK, temperature=5)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024"):
        client.completions.create(model=DEFAULT_MODEL, prompt="a " * 2000)
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(model=DEFAULT_MODEL, messages=[
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}])


def test_the_model_card(server: Server) -> None:
    card = server.client().models.list().data[0]
    assert card.id == DEFAULT_MODEL
    assert card.model_extra is not None
    assert card.model_extra["max_model_len"] == 1024
    assert server.client().models.retrieve(DEFAULT_MODEL).id == DEFAULT_MODEL


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_as_people_type_it(server: Server) -> None:
    data = json.dumps({"model": DEFAULT_MODEL, "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0})
    done = subprocess.run(["curl", "-s", f"{server.url}/v1/completions", "-H", "Content-Type: application/json",
                           "-H", f"Authorization: Bearer {KEY}", "-d", data], capture_output=True, check=True)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 7


async def test_many_streams_at_once_are_all_whole(server: Server) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)

    async def count(i: int) -> int:
        stream = await client.completions.create(model=DEFAULT_MODEL, prompt=f"Story {i}:", max_tokens=4 + i % 3,
                                                 stream=True, extra_body={"ignore_eos": True},
                                                 stream_options={"include_usage": True})
        usage = [chunk.usage async for chunk in stream][-1]
        return usage.completion_tokens if usage else -1

    before = server.metric("vllm:request_success_total")
    assert await asyncio.gather(*(count(i) for i in range(16))) == [4 + i % 3 for i in range(16)]
    await client.close()
    # From all workers, each counted once, whichever answers.
    assert {server.metric("vllm:request_success_total") for _ in range(6)} == {before + 16}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server: Server, stream: bool) -> None:
    import httpx

    body = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": stream}
    until(lambda: server.metric("vllm:num_requests_running") == 0, 60)
    with httpx.Client(headers={"authorization": f"Bearer {KEY}"}) as client:
        if stream:
            with client.stream("POST", f"{server.url}/v1/completions", json=body) as reply:
                next(reply.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/completions", json=body, timeout=1)
    generated = server.metric("vllm:generation_tokens_total")
    until(lambda: server.metric("vllm:num_requests_running") == 0, 60)
    until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)
    assert server.metric("vllm:generation_tokens_total") - generated < 800, "it did not run to its end"
