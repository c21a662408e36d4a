"""The body of a request to the service: the whole way from its bytes to the reply, with an engine of a few lines behind
it. The input's first byte says which path it is sent to.

No status is a 5xx but 501 and 503, which the API's document has, and nothing is raised.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.types import Message

from quire.app.main import create_app
from quire.engine.config import EngineArgs
from tests.app.conftest import worker_settings
from tests.app.fake_engine import FakeEngine
from tests.fuzz import loops, scratch

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
         "/v1/embeddings", "/tokenize", "/detokenize")
MAX_BODY_BYTES = 2**20
_HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]
_EXPECTED = frozenset({501, 503})

_SAID: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi \u00e9"}]
_PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}]},
          {"role": "assistant", "content": None, "tool_calls": [
              {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
          {"role": "tool", "tool_call_id": "c", "content": "1"}]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
_FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "required": ["a"]}}}
_SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "n": 2, "stop": ["a", "\u6f22"],
             "logit_bias": {"65": -100}, "presence_penalty": 1, "repetition_penalty": 1.1, "stop_token_ids": [7],
             "bad_words": ["x"], "allowed_token_ids": [65, 66], "min_tokens": 1, "priority": 3, "cache_salt": "s"}
_CORPUS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": _SAID, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}},
        {"messages": _PARTS, "tools": [_TOOL], "tool_choice": "auto", "logprobs": True, "top_logprobs": 2},
        {"messages": _SAID, "response_format": _FORM, "chat_template_kwargs": {"a": [1]}, **_SAMPLING}],
    "/v1/completions": [
        {"prompt": "a", "max_tokens": 3, "echo": True, "logprobs": 1, **_SAMPLING},
        {"prompt": [[1, 2], [3]], "prompt_logprobs": 1, "structured_outputs": {"regex": "[a-c]+"}},
        {"prompt": ["a", "b"], "guided_json": {"enum": [1, "x"]}},
        {"prompt": "a", "use_beam_search": True, "best_of": 2}],
    "/v1/responses": [
        {"input": "a", "instructions": "b", "max_output_tokens": 3, "text": {"format": {"type": "json_object"}}},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                   {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                   {"type": "function_call_output", "call_id": "c", "output": "1"}], "stream": True}],
    "/v1/messages": [
        {"max_tokens": 3, "system": "s", "messages": [{"role": "user", "content": "a"}], "stop_sequences": ["b"]},
        {"max_tokens": 3, "stream": True, "tools": [{"name": "f", "input_schema": {"type": "object"}}], "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}]}]}],
    "/v1/messages/count_tokens": [{"messages": [{"role": "user", "content": "a"}]}],
    "/v1/embeddings": [{"input": ["a", "b"], "encoding_format": "base64", "dimensions": 2}, {"input": [1, 2]}],
    "/tokenize": [{"prompt": "a"}, {"messages": _SAID, "add_generation_prompt": True}],
    "/detokenize": [{"tokens": [65, 66]}],
}


def seeds() -> list[bytes]:
    return [bytes([PATHS.index(path)]) + json.dumps(body).encode()
            for path, bodies in _CORPUS.items() for body in bodies]


def target(data: bytes) -> None:
    path = PATHS[data[0] % len(PATHS)] if data else PATHS[0]
    loop, app = _serving()
    status, reply = loop.run_until_complete(_post(app, path, data[1:]))
    assert status < 500 or status in _EXPECTED, f"{path}: {status} {reply[:500]!r}"


async def _post(app: Starlette, path: str, body: bytes) -> tuple[int, bytes]:
    sent: list[Message] = []
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()  # the client stays until the reply is whole
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": _HEADERS,
             "server": ("localhost", 80), "client": ("127.0.0.1", 1), "state": {}}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@cache
def _serving() -> tuple[asyncio.AbstractEventLoop, Starlette]:
    async def connect(addresses: Sequence[str], args: EngineArgs, *, opened: bool) -> Any:
        engine = FakeEngine()
        engine.submitted = engine.streams = _Forgetful()
        engine.chat_template.seen = _Forgetful()
        return engine

    loop = loops.new()
    app = create_app(worker_settings(scratch.folder(), max_body_bytes=MAX_BODY_BYTES), connect)

    loop.run_until_complete(_begun(app).__aenter__())
    return loop, app


@cache  # whoever lets go of it ends it
def _begun(app: Starlette) -> AbstractAsyncContextManager[Any]:
    return app.router.lifespan_context(app)


class _Forgetful(list[Any]):
    """What an engine of tests remembers for them would be growth here."""

    def append(self, item: Any) -> None:
        self[:] = [item]
