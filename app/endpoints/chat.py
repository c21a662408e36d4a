"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.background import in_background
from quire.app.conversation import by_weight, images_to_be_sent, named_as_sent, submit_conversation
from quire.app.endpoints.models import check_model
from quire.app.exchange import Exchange
from quire.app.json_pieces import all_as_raw
from quire.app.logprobs import chat_logprobs, prompt_logprobs
from quire.app.middleware.body_limit import body_was_read
from quire.app.openapi.operation import EVENTS, GENERATES, operation
from quire.app.replies.choice import Choice, Whole
from quire.app.replies.pieces import Arguments, Call, Content, Piece, Reasoning
from quire.app.schemas.body import read_body
from quire.app.schemas.chat import ChatChoice, ChatLogprobs, ChatReply, ChatRequest, Message
from quire.app.schemas.chunk import ChatChunk
from quire.app.schemas.tool_calls import Function, ToolCall
from quire.app.schemas.tools import checked_choice
from quire.app.schemas.usage import CompletionTokensDetails, Usage, UsageOfChunks
from quire.app.service import Service, record_of, service_of
from quire.app.sse import DONE
from quire.app.telemetry.record import Asked
from quire.engine.frontend.generation import SampleUpdate

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
    with named_as_sent(body.most_tokens_field):
        params = body.sampling_params(service.model_defaults, body.most_tokens, logprobs)
    record.asked = Asked("chat", model, body.stream, params, f"chatcmpl-{record.request_id}")
    choice = checked_choice(body.tools, body.tool_choice, several=body.parallel_tool_calls)
    images = images_to_be_sent(request, body.mm_processor_kwargs, body.cache_salt)
    messages = await by_weight(body.weight, body.conversation, images, exchange.max_model_len)
    # The reply lives long, and would hold all of what was sent.
    body, weight = msgspec.structs.replace(body, messages=[], tools=None), body.weight
    if not images.images:
        body_was_read(request)
    with named_as_sent(body.most_tokens_field):
        choices = await submit_conversation(
            service, exchange, messages, choice, params, variables=body.template_variables,
            add_generation_prompt=body.add_generation_prompt, priority=body.priority, cache_salt=body.cache_salt,
            add_special_tokens=bool(body.add_special_tokens), weight=weight,  # templates bring their own
            continue_final_message=body.continue_final_message, thinking_budget=body.thinking_budget, images=images)
    body_was_read(request)
    del messages  # as above
    reply = _Replies(service, exchange, body, choices, model, f"chatcmpl-{record.request_id}")
    if body.stream:
        return exchange.stream(reply.frames())
    return Response(_encode(await reply.whole()), headers=exchange.headers, media_type="application/json")


class _Replies:
    """The two forms of one reply."""

    def __init__(self, service: Service, exchange: Exchange, body: ChatRequest, choices: list[Choice], model: str,
                 id: str) -> None:
        self._service = service
        self._exchange = exchange
        self._body = body
        self._choices = choices
        self._model = model
        self._id = id
        self._created = service.now()
        self._role = service.settings.serve.response_role
        head = _encode({"id": id, "object": "chat.completion.chunk", "created": self._created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['

    async def whole(self) -> ChatReply:
        logprobs = [ChatLogprobs([]) for _ in self._choices]
        ends: list[SampleUpdate | None] = [None] * len(self._choices)
        pieces: list[list[Piece]] = [[] for _ in self._choices]
        [prompt], [of_prompt] = self._exchange.prompt_token_ids, self._exchange.prompt_logprobs
        async with self._exchange:
            async for update in self._exchange.updates(len(self._choices)):
                pieces[update.index] += self._choices[update.index].push(update)
                if self._body.logprobs:
                    logprobs[update.index].content += self._logprobs(update).content
                if update.finish_reason is not None:
                    ends[update.index] = update
        choices = [
            ChatChoice(i, self._message(pieces[i]), logprobs[i] if self._body.logprobs else None,
                       end.finish_reason or "abort", end.stop_reason)
            for i, end in enumerate(ends) if end is not None]
        told = None if of_prompt is None else await in_background(
            prompt_logprobs, self._service.tokenizer, prompt, of_prompt)
        return ChatReply(id=self._id, created=self._created, model=self._model, choices=await all_as_raw(choices),
                         usage=self._usage(), prompt_logprobs=told)

    def _message(self, pieces: list[Piece]) -> Message:
        whole = Whole.of(pieces)
        calls = [ToolCall(call.id, Function(call.name, arguments)) for call, arguments in whole.calls]
        message = Message(self._role, None if calls and not whole.content else whole.content, tool_calls=calls)
        if whole.reasoning and self._body.include_reasoning:
            message.reasoning = message.reasoning_content = whole.reasoning
        return message

    def _usage(self) -> Usage:
        usage = self._exchange.usage
        thought = sum(choice.num_reasoning_tokens for choice in self._choices)
        return usage if not thought else msgspec.structs.replace(
            usage, completion_tokens_details=CompletionTokensDetails(thought))

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """One frame per update. Before the first, the role of each choice in order: clients that collect choices append
        one at its first chunk, so a choice whose text is held back must not come after those behind it."""
        role = _encode({"role": self._role, "content": ""})
        begun = False
        async with self._exchange as exchange:
            counts = UsageOfChunks(self._body.include_usage, self._body.continuous_usage, self._usage)
            async for update in exchange.updates(len(self._choices)):
                usage = counts.field()
                opening = b"" if begun else b"".join(
                    self._frame(i, role, None, None, usage) for i in range(len(self._choices)))
                begun = True
                logprobs = self._logprobs(update) if self._body.logprobs else None
                deltas = self._deltas(update)
                if not (deltas or logprobs or update.finish_reason):
                    if opening:
                        yield opening
                    continue
                *before, last = deltas or [b"{}"]
                frames = [self._frame(update.index, delta, None, None, usage) for delta in before]
                yield b"".join([opening, *frames, self._frame(update.index, last, logprobs, update, usage)])
            if self._body.include_usage:
                yield self._head + b'],"usage":' + _encode(self._usage()) + b"}\n\n"
        yield DONE

    def _deltas(self, update: SampleUpdate) -> list[bytes]:
        """None where its text may still become anything."""
        choice = self._choices[update.index]
        if choice.is_plain:
            return [b'{"content":' + _encode(update.text) + b"}"]
        return [delta for piece in choice.push(update) if (delta := self._delta(piece))]

    def _delta(self, piece: Piece) -> bytes:
        match piece:
            case Content(text):
                return b'{"content":' + _encode(text) + b"}"
            case Reasoning(text):
                thought = _encode(text)
                return (b'{"reasoning":' + thought + b',"reasoning_content":' + thought + b"}"
                        if self._body.include_reasoning else b"")
            case Call(index, id, name):
                return _encode({"tool_calls": [{"index": index, "id": id, "type": "function",
                                                "function": {"name": name, "arguments": ""}}]})
            case Arguments(index, text):
                return _encode({"tool_calls": [{"index": index, "function": {"arguments": text}}]})

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
