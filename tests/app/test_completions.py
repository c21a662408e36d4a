from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types import Completion

from quire.app import exchange
from tests.app.fake_engine import FakeEngine


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": "m", **body})


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_a_reply_has_every_field(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    reply = (await post(client, prompt="San")).json()
    Completion.model_validate(reply)
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["choices"] == [{"index": 0, "text": "Hi 👋!", "logprobs": None, "finish_reason": "stop",
                                 "stop_reason": None, "prompt_logprobs": None}]
    assert reply["usage"]["prompt_tokens"] == 3
    assert fake.submitted[-1][1].max_tokens == 16
    assert fake.submitted[-1][2]["add_special_tokens"] is True


@pytest.mark.parametrize(("prompt", "submitted"), [
    ("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), ([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]]),
])
async def test_every_form_of_prompt(client: httpx.AsyncClient, fake: FakeEngine, prompt: Any, submitted: Any) -> None:
    assert (await post(client, prompt=prompt)).status_code == 200
    assert [s[0] for s in fake.submitted] == submitted


@pytest.mark.parametrize("prompt", [[], [["a"]], [1, "a"], [[True]], {"a": 1}, 5, [None]])
async def test_other_forms_are_refused(client: httpx.AsyncClient, prompt: Any) -> None:
    reply = await post(client, prompt=prompt)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "prompt"


async def test_choices_of_several_prompts_are_indexed_in_order(client: httpx.AsyncClient) -> None:
    reply = (await post(client, prompt=["ab", "c"], n=2, echo=True)).json()
    assert [(c["index"], c["text"]) for c in reply["choices"]] == [
        (0, "abHi 👋!"), (1, "abHi 👋!"), (2, "cHi 👋!"), (3, "cHi 👋!")]
    assert reply["usage"]["prompt_tokens"] == 3
    assert reply["usage"]["completion_tokens"] == 20
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks(await post(client, prompt=["ab", "c"], n=2, echo=True, stream=True)):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {c["index"]: c["text"] for c in reply["choices"]}


@pytest.mark.parametrize("echo", [False, True])
async def test_choices_are_opened_in_order_whichever_speaks_first(client: httpx.AsyncClient, fake: FakeEngine,
                                                                  echo: bool) -> None:
    fake.backwards = True
    got = chunks(await post(client, prompt=["ab", "c"], n=2, echo=echo, stream=True,
                            stream_options={"include_usage": True}))
    opening = [c["choices"][0] for c in got[:4]]
    assert [c["index"] for c in opening] == [0, 1, 2, 3]
    assert [c["text"] for c in opening] == (["ab", "ab", "c", "c"] if echo else [""] * 4)
    assert all(c["usage"] is None for c in got[:-1])
    assert got[-1]["usage"]["completion_tokens"] == 20


async def test_logprobs_have_the_legacy_shape(client: httpx.AsyncClient) -> None:
    table = (await post(client, prompt="a", logprobs=2)).json()["choices"][0]["logprobs"]
    assert table["tokens"] == list("Hi 👋!")
    assert table["text_offset"] == [0, 1, 2, 3, 4]
    assert table["token_logprobs"] == [-0.5] * 5
    assert table["top_logprobs"][0] == {"H": -0.5, "?": -9999.0}
    streamed = chunks(await post(client, prompt="a", logprobs=2, stream=True))
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in streamed] == [[0], [1], [2], [3], [4]]


async def test_what_is_echoed_has_logprobs_too(client: httpx.AsyncClient) -> None:
    choice = (await post(client, prompt="ab", logprobs=2, echo=True)).json()["choices"][0]
    table = choice["logprobs"]
    assert table["tokens"] == list("abHi 👋!")
    assert choice["text"] == "".join(table["tokens"])
    assert table["text_offset"] == list(range(7))
    assert table["token_logprobs"] == [None, -1.5] + [-0.5] * 5
    assert table["top_logprobs"][:3] == [None, {"?": -0.5, "b": -1.5}, {"H": -0.5, "?": -9999.0}]
    streamed = [c["choices"][0] for c in chunks(await post(client, prompt="ab", logprobs=2, echo=True, stream=True))]
    assert "".join(part["text"] for part in streamed) == choice["text"]
    for name, values in table.items():
        assert [value for part in streamed for value in part["logprobs"][name]] == values
    assert choice["prompt_logprobs"] is None


async def test_of_a_prompt_alone_nothing_is_generated(client: httpx.AsyncClient) -> None:
    reply = (await post(client, prompt=["ab", "c"], logprobs=0, echo=True, max_tokens=0)).json()
    assert [choice["text"] for choice in reply["choices"]] == ["ab", "c"]
    assert reply["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"length"}
    assert reply["usage"]["completion_tokens"] == 0
    got = chunks(await post(client, prompt="ab", logprobs=0, echo=True, max_tokens=0, stream=True))
    assert "".join(part["choices"][0]["text"] for part in got) == "ab"
    assert (await post(client, prompt="ab", max_tokens=0)).status_code == 400


async def test_a_reply_of_too_many_prompt_logprobs_is_refused(client: httpx.AsyncClient, fake: FakeEngine,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_TOLD", 60)
    ask = {"prompt": ["abcde", "abcde"], "n": 2, "prompt_logprobs": 2}
    assert (await post(client, **ask)).status_code == 200
    reply = await post(client, **ask | {"n": 3})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt_logprobs")
    assert all(stream.closed for stream in fake.streams)


async def test_prompt_logprobs_name_ids(client: httpx.AsyncClient) -> None:
    choices = (await post(client, prompt=["a", "bc"], n=2, prompt_logprobs=2)).json()["choices"]
    assert [choice["prompt_logprobs"] for choice in choices[:2]] == [[None]] * 2
    assert choices[2]["prompt_logprobs"] == choices[3]["prompt_logprobs"] == [
        None, {"99": {"logprob": -1.5, "rank": 2, "decoded_token": "c"},
               "63": {"logprob": -0.5, "rank": 1, "decoded_token": "?"}}]
    assert (await post(client, prompt="a")).json()["choices"][0]["prompt_logprobs"] is None


async def test_a_failure_of_one_prompt_ends_all(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.fails_after = 1
    assert (await post(client, prompt=["a", "b"])).status_code == 500
    assert all(stream.closed for stream in fake.streams)


@pytest.mark.parametrize(("body", "param"), [
    ({"best_of": 2}, "best_of"), ({"suffix": "x"}, "suffix"), ({"length_penalty": 2.0}, "length_penalty"),
    ({"use_beam_search": True, "temperature": 0.5}, "temperature"), ({"use_beam_search": True, "stop": "x"}, "stop"),
    ({"logprobs": -1}, "logprobs"), ({"prompt_logprobs": -1}, "prompt_logprobs"), ({"messages": []}, "messages"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
])
async def test_what_cannot_be_served_is_refused_by_name(client: httpx.AsyncClient, body: dict[str, Any],
                                                        param: str) -> None:
    reply = await post(client, prompt="a", **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


async def test_a_missing_prompt_is_named(client: httpx.AsyncClient) -> None:
    reply = await post(client)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "prompt"
