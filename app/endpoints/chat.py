"""POST /v1/chat/completions."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.background import in_background
from quire.app.endpoints.models import check_model
from quire.app.exchange import Exchange
from quire.app.json_pieces import all_as_raw
from quire.app.logprobs import chat_logprobs, prompt_logprobs
from quire.app.middleware.body_limit import body_was_read
from quire.app.openapi.operation import EVENTS, GENERATES, operation
from quire.app.schemas.body import read_body, unknown_of
from quire.app.schemas.chat import ChatChoice, ChatLogprobs, ChatReply, ChatRequest, Message
from quire.app.schemas.chunk import ChatChunk
from quire.app.schemas.unknown import UnknownFields
from quire.app.schemas.usage import UsageOfChunks
from quire.app.service import Service, record_of, service_of
from quire.app.sse import DONE
from quire.app.telemetry.record import Asked
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.sampling_params import SamplingParams

_LONG_CONVERSATION = 4000  # weight, beyond which rendering leaves the event loop
_encode = msgspec.json.encode


@operation("Answer a conversation", "generation", takes=ChatRequest, gives=ChatReply, other_media={EVENTS: ChatChunk},
           refuses=GENERATES, example={"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 50})
async def chat_completions(request: Request) -> Response:
    service, record = service_of(request), record_of(request)
    exchange = Exchange(request)
    body = await read_body(request, ChatRequest)
    body.check(service.settings.serve)
    model = check_model(request, body.model)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    with _named_as_sent(body):
        params = body.sampling_params(service.model_defaults, body.most_tokens, logprobs)
    record.asked = Asked("chat", model, body.stream, params, f"chatcmpl-{record.request_id}")
    prompt = await _render(service, body, unknown_of(request), exchange.max_model_len)
    body = msgspec.structs.replace(body, messages=[])  # which would hold all of what was sent for as long as the reply
    body_was_read(request)
    with _named_as_sent(body), service.naming_limits():
        await exchange.submit(prompt, params, priority=body.priority, cache_salt=body.cache_salt,
                              add_special_tokens=bool(body.add_special_tokens))  # templates bring their own
    reply = _Replies(service, exchange, body, params, model, f"chatcmpl-{record.request_id}")
    if body.stream:
        return exchange.stream(reply.frames())
    return Response(_encode(await reply.whole()), headers=exchange.headers, media_type="application/json")


@contextmanager
def _named_as_sent(body: ChatRequest) -> Iterator[None]:
    """What the engine says of max_tokens is about max_completion_tokens where the client sent that."""
    try:
        yield
    except InvalidRequestError as error:
        if body.max_completion_tokens is None:
            raise
        param = "max_completion_tokens" if error.param == "max_tokens" else error.param
        message = re.sub(r"\bmax_tokens\b", "max_completion_tokens", error.message)
        raise InvalidRequestError(message, param) from None


async def _render(service: Service, body: ChatRequest, unknown: UnknownFields, max_model_len: int) -> str:
    template = service.engine.chat_template

    def render() -> str:
        return template.render(body.conversation(unknown, max_model_len),
                               add_generation_prompt=body.add_generation_prompt, **body.chat_template_kwargs)

    return await in_background(render) if body.weight > _LONG_CONVERSATION else render()


class _Replies:
    """The two forms of one reply."""

    def __init__(self, service: Service, exchange: Exchange, body: ChatRequest, params: SamplingParams, model: str,
                 id: str) -> None:
        self._service = service
        self._exchange = exchange
        self._body = body
        self._n = params.n
        self._model = model
        self._id = id
        self._created = service.now()
        head = _encode({"id": id, "object": "chat.completion.chunk", "created": self._created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['

    async def whole(self) -> ChatReply:
        texts = [""] * self._n
        logprobs = [ChatLogprobs([]) for _ in texts]
        ends: list[SampleUpdate | None] = [None] * self._n
        [prompt], [of_prompt] = self._exchange.prompt_token_ids, self._exchange.prompt_logprobs
        async with self._exchange:
            async for update in self._exchange.updates(self._n):
                texts[update.index] += update.text
                if self._body.logprobs:
                    logprobs[update.index].content += self._logprobs(update).content
                if update.finish_reason is not None:
                    ends[update.index] = update
        role = self._service.settings.serve.response_role
        choices = [
            ChatChoice(i, Message(role, texts[i]), logprobs[i] if self._body.logprobs else None,
                       end.finish_reason or "abort", end.stop_reason)
            for i, end in enumerate(ends) if end is not None]
        told = None if of_prompt is None else await in_background(
            prompt_logprobs, self._service.tokenizer, prompt, of_prompt)
        return ChatReply(id=self._id, created=self._created, model=self._model, choices=await all_as_raw(choices),
                         usage=self._exchange.usage, prompt_logprobs=told)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """One frame per update. Before the first, the role of each choice in order: clients that collect choices append
        one at its first chunk, so a choice whose text is held back must not come after those behind it."""
        role = _encode({"role": self._service.settings.serve.response_role, "content": ""})
        begun = False
        async with self._exchange as exchange:
            counts = UsageOfChunks(self._body.include_usage, self._body.continuous_usage, lambda: exchange.usage)
            async for update in exchange.updates(self._n):
                usage = counts.field()
                opening = b"" if begun else b"".join(self._frame(i, role, None, None, usage) for i in range(self._n))
                begun = True
                logprobs = self._logprobs(update) if self._body.logprobs else None
                delta = b'{"content":' + _encode(update.text) + b"}"
                yield opening + self._frame(update.index, delta, logprobs, update, usage)
            if self._body.include_usage:
                yield self._head + b'],"usage":' + _encode(exchange.usage) + b"}\n\n"
        yield DONE

    def _frame(self, index: int, delta: bytes, logprobs: ChatLogprobs | None, update: SampleUpdate | None,
               usage: bytes) -> bytes:
        # Built by hand around constant parts: at thousands of tokens a second this is what a worker does all day.
        parts = [self._head, b'{"index":%d,"delta":' % index, delta, b',"logprobs":',
                 b"null" if logprobs is None else _encode(logprobs), b',"finish_reason":']
        if update is None or update.finish_reason is None:
            parts.append(b"null}]")
        else:
            parts += [_encode(update.finish_reason), b',"stop_reason":', _encode(update.stop_reason), b"}]"]
        parts += [usage, b"}\n\n"]
        return b"".join(parts)

    def _logprobs(self, update: SampleUpdate) -> ChatLogprobs:
        return chat_logprobs(self._service.tokenizer, update)
