"""What /tokenize and /detokenize cost is bounded, whatever they are sent."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from quire.app.endpoints.tokenize import TOKENS_ALWAYS_TAKEN
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.app.fake_engine import INFO, FakeEngine
from tests.conftest import smollm2_file
from tests.engine.conftest import model_at

TOKENIZER = load_tokenizer(model_at(smollm2_file()))


class Watched(Tokenizer):
    """SmolLM2's, which notes what it is given, and how many texts at once."""

    def __init__(self) -> None:
        self.__dict__.update(TOKENIZER.__dict__)
        self.num_chars = 0
        self.longest = 0
        self.most_at_once = 0
        self._at_once: set[int] = set()

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        self._at_once.add(threading.get_ident())
        self.most_at_once = max(self.most_at_once, len(self._at_once))
        self.num_chars += sum(map(len, texts))
        self.longest = max(self.longest, *map(len, texts))
        time.sleep(0.02)
        try:
            return super().encode_batch(texts, add_special_tokens)
        finally:
            self._at_once.discard(threading.get_ident())


@pytest.fixture
def watched(fake: FakeEngine) -> Watched:
    fake.tokenizer = watched = Watched()  # type: ignore[assignment]
    return watched


@pytest.fixture
async def client(make_app: Callable[..., Starlette], watched: Watched) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(max_body_bytes=16 * 2**20)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("body", [{"prompt": "1 " * 7_000_000}, {"prompt": " " * 7_000_000}, {"prompt": "1 " * 100_000},
                                  {"messages": [{"role": "user", "content": "1 " * 100_000}]}])
async def test_a_text_beyond_the_limit_is_refused_before_it_is_tokenized_whole(
        client: httpx.AsyncClient, watched: Watched, body: dict[str, Any]) -> None:
    reply = await client.post("/tokenize", json=body)
    assert reply.status_code == (413 if len(str(body)) > 2**22 else 400)
    error = reply.json()["error"]
    assert str(TOKENS_ALWAYS_TAKEN) in error["message"]
    assert error["param"] in body or error["param"] == "prompt"
    assert watched.longest <= 2**16
    assert watched.num_chars <= 2**18


async def test_what_is_taken_has_the_tokens_it_always_had(client: httpx.AsyncClient) -> None:
    text = "The quick brown fox jumps over 13 lazy dogs.\n" * 4000
    reply = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert reply["tokens"] == TOKENIZER.encode(text)
    assert reply["count"] == len(reply["tokens"]) > 40_000
    assert "".join(reply["token_strs"]) == text
    assert (await client.post("/detokenize", json={"tokens": reply["tokens"]})).json() == {"prompt": text}


async def test_no_more_than_two_texts_are_tokenized_at_a_time(client: httpx.AsyncClient, watched: Watched) -> None:
    replies = await asyncio.gather(*[client.post("/tokenize", json={"prompt": "word " * 10_000}) for _ in range(6)])
    assert [reply.status_code for reply in replies] == [200] * 6
    assert watched.most_at_once <= 2


@pytest.mark.parametrize("num_ids", [TOKENS_ALWAYS_TAKEN + 1, 7_000_000])
async def test_ids_beyond_the_limit_are_refused_untouched(client: httpx.AsyncClient, num_ids: int) -> None:
    raw = b'{"tokens":[' + b"1," * (num_ids - 1) + b"1]}"
    tracemalloc.start()
    reply = await client.post("/detokenize", content=raw, headers={"content-type": "application/json"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reply.status_code in (400, 413)
    assert str(TOKENS_ALWAYS_TAKEN) in reply.json()["error"]["message"]
    assert reply.json()["error"]["param"] == "tokens"
    assert peak < 2 * len(raw) + (1 << 20), "a list of the ids takes eight bytes each"


async def test_ids_that_generation_may_produce_are_taken_and_those_without_a_text_say_nothing(
        client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.info = msgspec.structs.replace(INFO, vocab_size=TOKENIZER.vocab_size + 64)
    ids = [*TOKENIZER.encode("ab"), TOKENIZER.vocab_size, TOKENIZER.vocab_size + 63]
    assert (await client.post("/detokenize", json={"tokens": ids})).json() == {"prompt": "ab"}
    beyond = await client.post("/detokenize", json={"tokens": [TOKENIZER.vocab_size + 64]})
    assert beyond.status_code == 400
    assert f"from 0 to {TOKENIZER.vocab_size + 63}" in beyond.json()["error"]["message"]


async def test_messages_are_counted_as_chat_would_render_them(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tool = {"type": "function", "function": {"name": "f"}}
    fake.chat_template.source = "{{ tools }}"
    reply = await client.post("/tokenize", json={"messages": messages, "tools": [tool], "return_token_strs": True,
                                                 "add_generation_prompt": False, "chat_template_kwargs": {"deep": 1}})
    assert fake.chat_template.seen[-1] == (messages, {"tools": [tool], "add_generation_prompt": False, "deep": 1})
    assert reply.json() == {"count": 1, "max_model_len": INFO.max_model_len, "tokens": TOKENIZER.encode("Hi"),
                            "token_strs": ["Hi"]}
    begun = [*messages, {"role": "assistant", "content": "So"}]
    await client.post("/tokenize", json={"messages": begun, "add_generation_prompt": False,
                                         "continue_final_message": True})
    assert fake.chat_template.seen[-1][1]["continue_final_message"] is True


@pytest.mark.parametrize(("body", "param"), [
    ({"prompt": "x", "tools": [{}]}, "tools"),
    ({"prompt": "x", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ({"messages": [], "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
    ({"messages": [], "tools": 1}, "tools")])
async def test_what_cannot_be_rendered_is_named(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    reply = await client.post("/tokenize", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
