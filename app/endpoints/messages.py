"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's SDKs and coding agents call them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.anthropic_errors import AnthropicError, error_body
from quire.app.conversation import by_weight, images_to_be_sent, prompt_of, submit_conversation
from quire.app.endpoints.models import check_model
from quire.app.endpoints.tokenize import counted, most_body, most_tokens
from quire.app.errors import ApiError
from quire.app.exchange import Exchange
from quire.app.json_pieces import all_as_raw
from quire.app.middleware.body_limit import body_was_read
from quire.app.openapi.operation import EVENTS, GENERATES, NAMES_MODEL, READS_BODY, operation
from quire.app.replies.blocks import BlockEvents, blocks_of, event
from quire.app.replies.choice import Choice
from quire.app.replies.pieces import Call, Piece
from quire.app.schemas.body import read_body, unknown_of
from quire.app.schemas.media import SentImages
from quire.app.schemas.messages import (
    CountRequest,
    MessageReply,
    MessagesRequest,
    MessageUsage,
    OutputTokensDetails,
    ShownThoughts,
    TokenCount,
)
from quire.app.service import Service, record_of, service_of
from quire.app.sse import EventStream
from quire.app.telemetry.record import Asked
from quire.engine.errors import ContextLengthError, InvalidRequestError
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.prompts import off_the_loop

# How fields that are checked as chat has them are called here: in names, and where messages begin with these.
_NAMES = ((re.compile(r"^stop\b"), "stop_sequences"),
          (re.compile(r"^(tools\[\d+\])\.function\.parameters\b"), r"\1.input_schema"),
          (re.compile(r"^(tools\[\d+\])\.function\b"), r"\1"))
_encode = msgspec.json.encode


@operation("Answer a conversation, by Anthropic's API", "generation", takes=MessagesRequest, gives=MessageReply,
           other_media={EVENTS: dict[str, Any]}, refuses=GENERATES, error=AnthropicError,
           example={"max_tokens": 50, "messages": [{"role": "user", "content": "Say hello."}]})
async def create_message(request: Request) -> Response:
    service, record = service_of(request), record_of(request)
    exchange = Exchange(request)
    body = await read_body(request, MessagesRequest)
    unknown = unknown_of(request)
    body.check()
    model = check_model(request, body.model)
    with _named_as_sent():
        chat = body.as_chat
        chat.check(service.settings.serve)
        params = chat.sampling_params(service.model_defaults, body.max_tokens, None)
        params.structured_outputs = body.form
        choice = body.choice(unknown)
    record.asked = Asked("chat", model, body.stream, params, f"msg_{record.request_id}")
    images = images_to_be_sent(request, cache_salt=chat.cache_salt)
    messages = await by_weight(body.weight, body.conversation, images, exchange.max_model_len)
    # The reply lives long, and would hold all of what was sent.
    is_streamed, max_tokens, shown, weight = body.stream, body.max_tokens, body.shown_thoughts, body.weight
    # A wish, which agents send whatever the model is. With tools it would make a grammar of the whole reply, calls and
    # all, and not all of their schemas can be followed: it does where the reply has a form anyway.
    has_form = choice.must_call or choice.strict or params.structured_outputs is not None
    is_bound = service.reply_style.bounds_thinking and (has_form or not choice.tools)
    budget = body.thinking_budget if is_bound else None
    del body
    if not images.images:
        body_was_read(request)
    with _named_as_sent():
        [of_reply] = await submit_conversation(
            service, exchange, messages, choice, params, variables=chat.template_variables,
            **_beginning(messages), thinking_budget=budget,
            priority=chat.priority, cache_salt=chat.cache_salt, add_special_tokens=False, weight=weight,
            clamp=True, images=images)  # agents ask for as much as a large model could give
    body_was_read(request)
    del messages  # as above
    begun = MessageReply(id=f"msg_{record.request_id}", model=model, content=[], usage=MessageUsage(0, 0, 0))
    reply = _Reply(exchange, of_reply, begun, shown, max_tokens)
    if is_streamed:
        return exchange.stream(reply.frames(), MessageStream)
    return Response(_encode(await reply.whole()), headers=exchange.headers, media_type="application/json")


@operation("Count a conversation's tokens, by Anthropic's API", "tokens", takes=CountRequest, gives=TokenCount,
           refuses=READS_BODY | NAMES_MODEL, error=AnthropicError,
           example={"messages": [{"role": "user", "content": "Say hello."}]})
async def count_tokens(request: Request) -> Response:
    service = service_of(request)
    body = await read_body(request, CountRequest, most_body(service, "messages"))
    check_model(request, body.model)
    body.check()
    images = images_to_be_sent(request)
    with _named_as_sent():
        prompt = await off_the_loop(_prompt, service, body, images)
        tokens = await counted(service, prompt, "messages", images, with_special=False)
    return Response(_encode(TokenCount(len(tokens))), media_type="application/json")


def _beginning(messages: list[dict[str, Any]]) -> dict[str, bool]:
    """Where the reply begins, for the template: behind the assistant's last words where these end the conversation."""
    is_begun = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    return {"add_generation_prompt": not is_begun, "continue_final_message": is_begun}


def _prompt(service: Service, body: CountRequest, images: SentImages) -> str:
    messages = body.conversation(images, most_tokens(service))
    return prompt_of(service, messages, body.choice(images.unknown), variables=body.template_variables,
                     **_beginning(messages))


@contextmanager
def _named_as_sent() -> Iterator[None]:
    """What is said of fields as chat has them is about Anthropic's."""
    try:
        yield
    except ContextLengthError as error:
        # Agents look for these words, and shorten the conversation.
        raise InvalidRequestError(f"prompt is too long: {error.num_prompt} tokens > {error.max_model_len - 1} maximum. "
                                  f"{error.message}", "messages") from None
    except InvalidRequestError as error:
        raise InvalidRequestError(*_as_sent(error.message, error.param)) from None
    except ApiError as error:
        message, param = _as_sent(error.message, error.param)
        raise ApiError(error.status, message, param, error.headers, error.reason) from None


def _as_sent(message: str, param: str | None) -> tuple[str, str | None]:
    for pattern, name in _NAMES:
        if param is not None and pattern.match(param):
            return pattern.sub(name, message), pattern.sub(name, param)
    return message, param


class MessageStream(EventStream):
    ping = event("ping", b'{"type":"ping"}')
    done = b""

    def failure(self, error: ApiError) -> bytes:
        return event("error", error_body(error.status, error.message))


class _Reply:
    """The two forms of one reply, of which `begun` is what is known before it comes."""

    def __init__(self, exchange: Exchange, choice: Choice, begun: MessageReply, shown: ShownThoughts,
                 max_tokens: int) -> None:
        self._exchange = exchange
        self._choice = choice
        self._message = begun
        self._shown = shown
        self._max_tokens = max_tokens
        self._has_called = False

    async def whole(self) -> MessageReply:
        pieces: list[Piece] = []
        async with self._exchange as exchange:
            async for update in exchange.updates(1):
                pieces += self._take(update)
        self._message.content = await all_as_raw(blocks_of(pieces, self._shown))
        return self._message

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """One for each update that tells something."""
        blocks, begun = BlockEvents(self._shown), False
        async with self._exchange as exchange:
            async for update in exchange.updates(1):
                pieces = self._take(update)
                frames = [] if begun else [self._start()]
                begun = True
                frames += blocks.push(pieces)
                if update.finish_reason is not None:
                    frames += [*blocks.end(), *self._end()]
                if frames:
                    yield b"".join(frames)

    def _take(self, update: SampleUpdate) -> list[Piece]:
        """The update's pieces. Its end is noted in the message."""
        pieces = self._choice.push(update)
        self._has_called = self._has_called or any(isinstance(piece, Call) for piece in pieces)
        if update.finish_reason is not None:
            self._message.usage = usage = self._usage()
            if isinstance(update.stop_reason, str):
                self._message.stop_reason, self._message.stop_sequence = "stop_sequence", update.stop_reason
            elif update.finish_reason == "length":
                is_whole = usage.output_tokens >= self._max_tokens
                self._message.stop_reason = "max_tokens" if is_whole else "model_context_window_exceeded"
            else:
                self._message.stop_reason = "tool_use" if self._has_called else "end_turn"
        return pieces

    def _usage(self) -> MessageUsage:
        """So far."""
        usage, thought = self._exchange.usage, self._choice.num_reasoning_tokens
        cached = usage.prompt_tokens_details.cached_tokens
        return MessageUsage(usage.prompt_tokens - cached, usage.completion_tokens, cached, output_tokens_details=(
            OutputTokensDetails(thought) if thought else msgspec.UNSET))

    def _start(self) -> bytes:
        message = msgspec.structs.replace(self._message, usage=self._usage(), stop_reason=None, stop_sequence=None)
        return event("message_start", _encode({"type": "message_start", "message": message}))

    def _end(self) -> list[bytes]:
        message = self._message
        delta = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
        return [event("message_delta", _encode({"type": "message_delta", "delta": delta, "usage": message.usage})),
                event("message_stop", b'{"type":"message_stop"}')]
