"""What a request may ask for at most, each refusal naming field, limit and value; and bodies that nobody meant well."""

from __future__ import annotations

import contextlib
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from quire.app.endpoints.tokenize import DetokenizeRequest, TokenizeRequest
from quire.app.errors import ApiError
from quire.app.schemas.body import parse_body
from quire.app.schemas.chat import ChatRequest
from quire.app.schemas.completions import CompletionRequest
from quire.app.schemas.media import SentImages
from quire.app.schemas.response_input import conversation_of
from quire.app.schemas.responses import ResponsesRequest
from quire.app.schemas.structure import MOST_BRACKETS
from quire.app.schemas.unknown import UnknownFields
from quire.app.settings import ServeSettings
from quire.engine.config import EngineArgs
from quire.engine.errors import InvalidRequestError, context_length_error
from quire.engine.frontend.submission import numbers
from quire.engine.sampling_params import SamplingParams
from tests.app.fake_engine import INFO, FakeEngine

MESSAGE = {"role": "user", "content": "x"}
OWN = {ChatRequest: '"messages":[{"role":"user","content":"x"}]', CompletionRequest: '"prompt":"x"',
       ResponsesRequest: '"input":"x"'}
SCHEMAS = (*OWN, TokenizeRequest, DetokenizeRequest)


@pytest.fixture
async def strict(make_app: Callable[..., Starlette]) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(max_n=3, max_stop_sequences=2, max_prompts=4, max_body_bytes=10**6,
                   engine=EngineArgs(model="/models/m", max_queued_requests=8, max_logprobs=5))
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(("path", "body", "param", "said"), [
    ("chat/completions", {"n": 4}, "n", ["at most 3", "--max-n", "got 4"]),
    ("chat/completions", {"stop": ["a"] * 3}, "stop", ["at most 2 strings", "--max-stop-sequences", "got 3"]),
    ("chat/completions", {"stop": "a" * 1001}, "stop", ["at most 1000 characters", "got 1001"]),
    ("chat/completions", {"stop": ["a", "b" * 1001]}, "stop", ["at most 1000 characters", "got 1001"]),
    ("chat/completions", {"stop_token_ids": [1] * 129}, "stop_token_ids", ["at most 128 ids", "got 129"]),
    ("chat/completions", {"logprobs": True, "top_logprobs": 6}, "top_logprobs", ["at most 5", "--max-logprobs"]),
    ("chat/completions", {"messages": [MESSAGE] * 4097}, "messages", ["at most 4096 messages", "got 4097"]),
    ("chat/completions", {"chat_template_kwargs": {"a": nested(20)}}, "chat_template_kwargs",
     ["at most 16 levels", "got 21"]),
    ("chat/completions", {"chat_template_kwargs": {"a": "b" * 70000}}, "chat_template_kwargs",
     ["at most 65536 bytes"]),
    ("chat/completions", {"priority": 2**31}, "priority", ["-2147483648 to 2147483647", "got 2147483648"]),
    ("chat/completions", {"cache_salt": "a" * 257}, "cache_salt", ["at most 256 characters", "got 257"]),
    ("completions", {"prompt": ["a"] * 5}, "prompt", ["at most 4 prompts", "--max-prompts", "got 5"]),
    ("completions", {"prompt": ["a"] * 4, "n": 3}, "n", ["12 samples", "at most 8", "--max-queued-requests"]),
    ("completions", {"prompt": ["a" * 200_000, "b" * 200_000], "n": 3, "echo": True}, "echo",
     ["about 1200000 characters", "At most 1048576", "smaller n"]),
    ("completions", {"prompt": "a", "logprobs": 6}, "logprobs", ["at most 5", "got 6"]),
    ("completions", {"prompt": [7] * 200_000}, "prompt", [f"maximum context length is {INFO.max_model_len}", "200000"]),
])
async def test_what_is_too_much_is_400_before_the_engine_hears_of_it(
        strict: httpx.AsyncClient, fake: FakeEngine, path: str, body: dict[str, Any], param: str,
        said: list[str]) -> None:
    base: dict[str, Any] = {"messages": [MESSAGE]} if path.startswith("chat") else {}
    reply = await strict.post(f"/v1/{path}", json=base | body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert all(part in error["message"] for part in said), error["message"]
    assert not fake.submitted


@pytest.mark.parametrize(("path", "body"), [
    ("chat/completions", {"n": 3, "stop": ["a" * 1000, "b"], "stop_token_ids": [1] * 128, "logprobs": True,
                          "top_logprobs": 5, "chat_template_kwargs": {"a": nested(15)}, "cache_salt": "a" * 256}),
    ("completions", {"prompt": ["a"] * 4, "n": 2, "logprobs": 5}),
])
async def test_the_most_is_allowed(strict: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    base: dict[str, Any] = {"messages": [MESSAGE]} if path.startswith("chat") else {}
    reply = await strict.post(f"/v1/{path}", json=base | body)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(("limits", "device", "said"), [
    ({}, "cpu", ["100 tokens here, which is what the KV cache holds (the model itself takes 8192). However",
                 "with more cache (--kv-cache-memory-bytes)."]),
    ({}, "cuda", ["KV cache holds", "with more cache (--gpu-memory-utilization)."]),
    ({"kv_cache_memory_bytes": 1}, "cuda", ["KV cache holds", "with more cache (--kv-cache-memory-bytes)."]),
    ({"num_gpu_blocks_override": 1}, "cpu", ["KV cache holds", "with more cache (--num-gpu-blocks-override)."]),
    ({"max_model_len": 100}, "cpu", ["100 tokens here, as --max-model-len says (the model itself takes 8192). However",
                                     "start the engine with a longer --max-model-len."]),
])
async def test_what_is_too_long_is_told_what_sets_the_limit(
        make_app: Callable[..., Starlette], fake: FakeEngine, limits: dict[str, int], device: str,
        said: list[str]) -> None:
    app = make_app(engine=EngineArgs(model="/models/m", **limits))  # type: ignore[arg-type]
    fake.info = msgspec.structs.replace(INFO, device=device)
    fake.refuse = context_length_error(100, 95, 16)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for own in (8192, 100):
            fake.model_config.max_position_embeddings = own
            for path, body in (("completions", {"prompt": [7] * 200}), ("completions", {"prompt": [[7] * 200, "a"]}),
                               ("completions", {"prompt": "x"}), ("chat/completions", {"messages": [MESSAGE]})):
                reply = await client.post(f"/v1/{path}", json=body)
                assert reply.status_code == 400
                message = reply.json()["error"]["message"]
                assert message.startswith("This model's maximum context length is 100 tokens")
                assert all(part in message for part in said) is (own > 100), message


def read(raw: bytes, schema: Any, take_all: bool = False) -> SamplingParams:
    """All that an endpoint does with a body before a prompt is rendered or tokenized."""
    limits, unknown = ServeSettings(), UnknownFields(take_all=take_all)
    body = parse_body(raw, schema, unknown)
    if isinstance(body, ChatRequest):
        body.check(limits)
        body.conversation(SentImages(False, unknown), 8192)
        return body.sampling_params({}, body.most_tokens, body.top_logprobs)
    elif isinstance(body, CompletionRequest):
        body.check(limits, len(body.prompts(limits.max_prompts, 8192)))
        return body.sampling_params({}, body.max_tokens, body.num_logprobs)
    elif isinstance(body, ResponsesRequest):
        body.check(limits, unknown)
        body.checked_choice()
        conversation_of(body.input, body.instructions, SentImages(False, unknown), 8192)
        params = body.sampling_params({}, body.max_output_tokens, body.num_logprobs)
        msgspec.json.encode(body.reply("resp_1", 1, "m", params))
        return params
    return SamplingParams()


def test_a_body_of_lists_is_not_unfolded() -> None:
    with pytest.raises(ApiError, match="more than 1048576 opening brackets"):
        parse_body(b'{"prompt":[' + b"[]," * MOST_BRACKETS + b"[]]}", CompletionRequest, UnknownFields())
    text = "[" * (MOST_BRACKETS - 1)
    body = parse_body(json.dumps({"prompt": text}).encode(), CompletionRequest, UnknownFields())
    assert body.prompts(1, 8192) == [text]


MILLION = b"[" + b"7," * 999_999 + b"7]"
CHAT = b'{"messages":[{"role":"user","content":"x"}],'


@pytest.mark.parametrize(("raw", "schema", "said"), [
    (b'{"prompt":' + MILLION + b"}", CompletionRequest, "contains 1000000 input tokens"),
    (b'{"prompt":["a",' + MILLION + b"]}", CompletionRequest, "contains 1000000 input tokens"),
    (b'{"prompt":[' + b'"a",' * 999_999 + b'"a"]}', CompletionRequest, "at most 1024 prompts .* got 1000000"),
    (b'{"prompt":[' + b"[]," * 999_999 + b"[]]}", CompletionRequest, "at most 1024 prompts .* got 1000000"),
    (CHAT + b'"stop_token_ids":' + MILLION + b"}", ChatRequest, "stop_token_ids is 2000001 bytes long"),
    (CHAT + b'"chat_template_kwargs":{"a":' + MILLION + b"}}", ChatRequest, "chat_template_kwargs is 2000007 bytes"),
    (CHAT + b'"tools":' + MILLION + b"}", ChatRequest, "tools is 2000001 bytes long"),
    (CHAT + b'"never":' + MILLION + b"}", ChatRequest, "no request field 'never'"),
    (CHAT + b'"metadata":' + MILLION + b"}", ChatRequest, "metadata is 2000001 bytes long"),
    (CHAT + b'"metadata":' + b"[" + MILLION[1_100_001:] + b"}", ChatRequest, ""),
    (b'{"messages":[{"role":"user","content":"x","annotations":' + MILLION + b"}]}", ChatRequest, ""),
    (b'{"messages":[{"role":"user","content":"x","tool_calls":' + MILLION + b"}]}", ChatRequest,
     r"no request field 'messages\[0\].tool_calls'"),
    (b'{"messages":[' + b'{"role":"user","content":"x"},' * 40_000 + b"0]}", ChatRequest, "32768 fields of objects"),
    (b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}", ChatRequest, "32768 fields of objects"),
    (b'{"prompt":[' + b"7," * (2**20 + 1) + b"7]}", CompletionRequest, "1048576 values"),
    (b'{"input":[' + b"[]," * 999_999 + b"[]]}", ResponsesRequest, r"input\[0\] must be an object"),
    (b'{"input":[{"role":"user","content":"x","id":' + MILLION + b"}]}", ResponsesRequest, ""),
    (b'{"input":"x","text":' + MILLION + b"}", ResponsesRequest, "text is 2000001 bytes long"),
], ids=range(18))
def test_what_is_refused_or_passed_over_is_never_built(raw: bytes, schema: Any, said: str) -> None:
    """Millions of numbers hold up the loop for as long as it takes to make them, and cost 8 bytes each at least."""
    tracemalloc.start()
    try:
        if said:
            with pytest.raises((ApiError, InvalidRequestError), match=said):
                read(raw, schema)
        else:
            read(raw, schema)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(raw) + 2**16  # copies of the bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("schema", OWN)
def test_no_refusal_repeats_more_than_the_beginning_of_a_value(schema: Any) -> None:
    digits = "9" * 4300
    values_ = [digits, f"-{digits}", f"[{digits}]", f"[-{digits}]", json.dumps("x" * 9000), json.dumps(["x" * 9000]),
               f'{{"a":{digits}}}', f'{{"{"x" * 9000}":1}}']
    said = []
    for name in (*schema.__struct_fields__, "x" * 9000):
        for value in values_:
            raw = f"{{{OWN[schema]},{json.dumps(name)}:{value}}}"
            try:
                params = read(raw.encode(), schema)
                numbers(params, 1, max_model_len=8192, max_logprobs=20, vocab_size=100, eos_token_ids=[1], clamp=False)
            except (ApiError, InvalidRequestError) as error:
                said.append(error.message)
    assert len(said) > 100
    assert max(map(len, said)) < 500, max(said, key=len)


async def test_a_long_list_of_prompts_is_decoded_off_the_loop(
        make_app: Callable[..., Starlette], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    prompts = CompletionRequest.prompts

    def noting(self: CompletionRequest, *limits: int) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0])
        return prompts(self, *limits)

    monkeypatch.setattr(CompletionRequest, "prompts", noting)
    app = make_app(max_body_bytes=10**6)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for prompt in ([[7] * 50] * 1000, [7] * 50):
            assert (await client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})).status_code == 200
    assert threads == ["background", "MainThread"]


FIELDS = [*sorted({name for schema in SCHEMAS for name in schema.__struct_fields__}), "unknown", "\x00", "user",
          "tools"]
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**18, 10**60), st.floats(),
                    st.text(max_size=5), st.sampled_from(["user", "text", "reasoning", "\x00", "\ud800", "x" * 300]))
values = st.recursive(scalars, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3),
    st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name"]), inner, max_size=4)), max_leaves=12)


@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(st.sampled_from(FIELDS), values, max_size=5), schema=st.sampled_from(SCHEMAS),
       take_all=st.booleans())
def test_any_json_is_taken_or_refused_never_an_accident(body: dict[str, Any], schema: Any, take_all: bool) -> None:
    with contextlib.suppress(ApiError, InvalidRequestError):
        read(json.dumps(body).encode(), schema, take_all)


@settings(max_examples=200, deadline=None)
@given(schema=st.sampled_from(SCHEMAS), raw=st.one_of(
    st.binary(max_size=40), st.text("{}[]\",:0123456789-.eE\\untrfals \x00", max_size=40).map(str.encode)))
def test_any_bytes_are_taken_or_refused(raw: bytes, schema: Any) -> None:
    try:
        read(raw, schema)
    except (ApiError, InvalidRequestError):
        return
    assert isinstance(json.loads(raw), dict)  # /tokenize says later that {} lacks a prompt


BOMBS = [
    b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000,
    b'{"messages":' + b"[" * 900 + b"]" * 900 + b"}", b'{"prompt":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"chat_template_kwargs":{"a":' + b"[" * 900 + b"]" * 900 + b'},"messages":[]}',
    b'{"n":' + b"9" * 4000 + b',"messages":[],"prompt":"a"}', b'{"n":' + b"9" * 100_000 + b"}", b'{"n":1e400}',
    b'{"temperature":-1e308,"messages":[],"prompt":"a"}', b'{"seed":' + b"9" * 300 + b',"messages":[],"prompt":"a"}',
    b'{"messages":NaN}', b'{"messages":Infinity}', b'{"prompt":"\\ud800"}', b'{"\\udfff":1}', b'{"prompt":"\xff"}',
    b"\xef\xbb\xbf{}", b'{"n":1}\x00', b"\x00", b"null", b"", b'{"messages":[{"role":' + b"9" * 5000 + b"}]}",
    b'{"input":[{"role":' + b"9" * 5000 + b"}]}", b'{"input":"\\ud800"}', b'{"input":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"input":[{"role":"user","content":[{"type":1}]}]}',
    b'{"prompt":[' + b"9" * 400 + b',"a"]}', b'{"stop":[' + b'"",' * 50_000 + b'"a"]}',
]


@pytest.mark.parametrize("schema", OWN)
@pytest.mark.parametrize("raw", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_refused(raw: bytes, schema: Any) -> None:
    with pytest.raises((ApiError, InvalidRequestError)) as caught:
        read(raw, schema)
    assert len(caught.value.message) < 10_000
