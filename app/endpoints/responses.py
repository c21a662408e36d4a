"""POST /v1/responses: OpenAI's Responses API, of which nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.conversation import by_weight, images_to_be_sent, named_as_sent, submit_conversation
from quire.app.endpoints.models import check_model
from quire.app.errors import ApiError
from quire.app.exchange import Exchange
from quire.app.logprobs import chat_logprobs
from quire.app.middleware.body_limit import body_was_read
from quire.app.openapi.operation import EVENTS, GENERATES, operation
from quire.app.replies.choice import Choice
from quire.app.replies.items import Events, Items
from quire.app.schemas.body import read_body, unknown_of
from quire.app.schemas.response_input import conversation_of
from quire.app.schemas.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseReply,
    ResponsesRequest,
    ResponseUsage,
)
from quire.app.service import Service, record_of, service_of
from quire.app.sse import EventStream
from quire.app.telemetry.record import Asked
from quire.engine.frontend.generation import SampleUpdate

_encode = msgspec.json.encode
_ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}  # OpenAI's words for what failed midway


@operation("Answer a conversation, by the Responses API", "generation", takes=ResponsesRequest, gives=ResponseReply,
           other_media={EVENTS: dict[str, Any]}, refuses=GENERATES,
           example={"input": "Say hello.", "max_output_tokens": 50})
async def responses(request: Request) -> Response:
    service, record = service_of(request), record_of(request)
    exchange = Exchange(request)
    body = await read_body(request, ResponsesRequest)
    unknown = unknown_of(request)
    body.check(service.settings.serve, unknown)
    model = check_model(request, body.model)
    with named_as_sent("max_output_tokens", "input"):
        params = body.sampling_params(service.model_defaults, body.max_output_tokens, body.num_logprobs)
    id = f"resp_{record.request_id}"
    record.asked = Asked("chat", model, body.stream, params, id)
    choice = body.checked_choice()
    begun = body.reply(id, service.now(), model, params)
    with named_as_sent("max_output_tokens", "input"):
        images = images_to_be_sent(request, body.mm_processor_kwargs, body.cache_salt)
        messages = await by_weight(body.weight, conversation_of, body.input, body.instructions, images,
                                   exchange.max_model_len)
        # The reply lives long, and would hold all of what was sent.
        body, weight = msgspec.structs.replace(body, input=msgspec.Raw(), tools=[]), body.weight
        if not images.images:
            body_was_read(request)
        choices = await submit_conversation(
            service, exchange, messages, choice, params, variables=body.template_variables, add_generation_prompt=True,
            priority=body.priority, cache_salt=body.cache_salt, add_special_tokens=bool(body.add_special_tokens),
            weight=weight, images=images)  # templates bring their own
    body_was_read(request)
    del messages, choice  # as above
    reply = _Reply(service, exchange, body, choices[0], begun)
    if body.stream:
        return exchange.stream(reply.frames(), partial(_ResponseStream, reply))
    return Response(_encode(await reply.whole()), headers=exchange.headers, media_type="application/json")


class _Reply:
    """The two forms of one reply."""

    def __init__(self, service: Service, exchange: Exchange, body: ResponsesRequest, choice: Choice,
                 begun: ResponseReply) -> None:
        self._service = service
        self._exchange = exchange
        self._choice = choice
        self._begun = begun
        self._tells_logprobs = body.num_logprobs is not None
        self._events = Events()
        self._items = Items(self._events if body.stream else None, with_reasoning=body.include_reasoning)
        self._is_told = False  # the client knows that the reply has begun

    async def whole(self) -> ResponseReply:
        finish_reason = None
        async with self._exchange as exchange:
            async for update in exchange.updates(1):
                self._push(update)
                finish_reason = update.finish_reason
        self._items.end(_status(finish_reason))
        return self._ended(finish_reason)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Those of one update together. It begins with the first: what fails before that fails with a status."""
        finish_reason = None
        async with self._exchange as exchange:
            async for update in exchange.updates(1):
                frames = []
                if not self._is_told:
                    frames = [self._lifecycle(kind, self._begun)
                              for kind in (b"response.created", b"response.in_progress")]
                    self._is_told = True
                frames += self._push(update)
                finish_reason = update.finish_reason
                if frames:
                    yield b"".join(frames)
        for frame in self._items.end(_status(finish_reason)):
            yield frame
        # Also of a reply that was cut, as vLLM does: OpenAI's SDKs know no reply that ends with response.incomplete.
        yield self._lifecycle(b"response.completed", self._ended(finish_reason))

    def failure(self, error: ApiError) -> bytes:
        """The last events. Of `error`, some clients read OpenAI's flat event, and others the object of its errors."""
        code = _ERROR_CODES.get(error.status, "server_error")
        flat = _encode({"code": code, "message": error.message, "param": error.param})[1:-1]
        failed = self._with(status="failed", error=ResponseError(code, error.message))
        told = self._lifecycle(b"response.failed", failed) if self._is_told else b""
        return told + self._events.write(b"error", flat + b"," + error.body()[1:-1])

    def _push(self, update: SampleUpdate) -> list[bytes]:
        logprobs = chat_logprobs(self._service.tokenizer, update).content if self._tells_logprobs else []
        return self._items.push(self._choice.push(update), logprobs)

    def _lifecycle(self, kind: bytes, reply: ResponseReply) -> bytes:
        return self._events.write(kind, b'"response":' + _encode(reply))

    def _ended(self, finish_reason: str | None) -> ResponseReply:
        status = _status(finish_reason)
        is_whole = status == "completed"
        return self._with(status=status, completed_at=self._service.now() if is_whole else None,
                          incomplete_details=None if is_whole else IncompleteDetails())

    def _with(self, **changes: Any) -> ResponseReply:
        usage = self._exchange.usage
        counts = ResponseUsage(
            usage.prompt_tokens, InputTokensDetails(usage.prompt_tokens_details.cached_tokens), usage.completion_tokens,
            OutputTokensDetails(self._choice.num_reasoning_tokens), usage.total_tokens)
        return msgspec.structs.replace(self._begun, output=self._items.output, usage=counts, **changes)


def _status(finish_reason: str | None) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


class _ResponseStream(EventStream):
    """It ends with its last event."""

    done = b""

    def __init__(self, reply: _Reply, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reply = reply

    def failure(self, error: ApiError) -> bytes:
        return self._reply.failure(error)
