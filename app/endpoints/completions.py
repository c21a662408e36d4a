"""POST /v1/completions."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.background import in_background
from quire.app.endpoints.models import check_model
from quire.app.exchange import Exchange
from quire.app.json_pieces import all_as_raw
from quire.app.logprobs import LegacyLogprobs, prompt_logprobs
from quire.app.middleware.body_limit import body_was_read
from quire.app.openapi.operation import EVENTS, GENERATES, operation
from quire.app.schemas.body import by_size, read_body
from quire.app.schemas.chunk import CompletionChunk
from quire.app.schemas.completions import (
    DEFAULT_MAX_TOKENS,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    CompletionRequest,
)
from quire.app.schemas.usage import UsageOfChunks
from quire.app.service import Service, record_of, service_of
from quire.app.sse import DONE
from quire.app.telemetry.record import Asked
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.messages import TokenLogprobs
from quire.engine.sampling_params import SamplingParams

_encode = msgspec.json.encode


@operation("Continue texts", "generation", takes=CompletionRequest, gives=CompletionReply,
           other_media={EVENTS: CompletionChunk}, refuses=GENERATES, example={"prompt": "The sky is"})
async def completions(request: Request) -> Response:
    service, record = service_of(request), record_of(request)
    exchange = Exchange(request)
    body = await read_body(request, CompletionRequest)
    model = check_model(request, body.model)
    with service.naming_limits():
        limits = service.settings.serve.max_prompts, exchange.max_model_len
        prompts = await by_size(body.prompt, body.prompts, *limits)
    body = msgspec.structs.replace(body, prompt=msgspec.Raw())  # which would hold all of what was sent
    body_was_read(request)
    body.check(service.settings.serve, len(prompts))
    body.check_echo(prompts)
    exchange.check_prompts(len(prompts))
    # The engine knows no request that samples nothing; of one that only echoes, the token is left out.
    max_tokens = 1 if body.only_echoes else DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = body.sampling_params(service.model_defaults, max_tokens, body.num_logprobs)
    if body.echo and body.num_logprobs is not None and params.prompt_logprobs is None:
        params = dataclasses.replace(params, prompt_logprobs=body.num_logprobs)
    record.asked = Asked("text_completion", model, body.stream, params, f"cmpl-{record.request_id}")
    echoed = [""] * len(prompts)
    if body.echo:
        echoed = [prompt if isinstance(prompt, str) else await in_background(service.tokenizer.decode, prompt, False)
                  for prompt in prompts]
    with service.naming_limits():
        for prompt in prompts:
            await exchange.submit(prompt, params, priority=body.priority, cache_salt=body.cache_salt,
                                  add_special_tokens=body.add_special_tokens is not False)
    reply = _Replies(service, exchange, body, echoed, params, model, f"cmpl-{record.request_id}")
    if body.stream:
        return exchange.stream(reply.frames())
    return Response(_encode(await reply.whole()), headers=exchange.headers, media_type="application/json")


class _Replies:
    """The two forms of one reply. Choice i is sample i % n of prompt i // n."""

    def __init__(self, service: Service, exchange: Exchange, body: CompletionRequest, echoed: list[str],
                 params: SamplingParams, model: str, id: str) -> None:
        self._exchange = exchange
        self._body = body
        self._n = n = params.n
        self._model = model
        self._id = id
        self._created = service.now()
        self._begun: set[int] = set()  # choices whose lists begin with what is echoed
        self._echoed = [text for text in echoed for _ in range(n)]
        self._service = service
        self._prompts = exchange.prompt_token_ids
        self._logprobs: list[LegacyLogprobs | None] = [None] * len(self._echoed)
        if params.logprobs is not None:
            self._logprobs = [LegacyLogprobs(service.tokenizer, ids, params)
                              for ids in exchange.prompt_token_ids for _ in range(n)]
        head = _encode({"id": id, "object": "text_completion", "created": self._created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['

    async def whole(self) -> CompletionReply:
        texts = list(self._echoed)
        logprobs: list[CompletionLogprobs | None] = [
            None if table is None else CompletionLogprobs([], [], [], []) for table in self._logprobs]
        ends: list[SampleUpdate | None] = [None] * len(texts)
        told = self._exchange.prompt_logprobs
        async with self._exchange:
            async for update in self._exchange.updates(self._n, with_output=not self._body.only_echoes):
                texts[update.index] += update.text
                table, so_far = self._logprobs[update.index], logprobs[update.index]
                if table is not None and so_far is not None:
                    await self._begin(update.index, so_far, told)
                    table.extend(so_far, update)
                if update.finish_reason is not None:
                    ends[update.index] = update
        asked = self._body.prompt_logprobs is not None
        shown = [await in_background(prompt_logprobs, self._service.tokenizer, ids, each)
                 if asked and each is not None else None for ids, each in zip(self._prompts, told)]
        choices = [CompletionChoice(i, texts[i], logprobs[i], end.finish_reason or "abort", end.stop_reason,
                                    shown[i // self._n])
                   for i, end in enumerate(ends) if end is not None]
        return CompletionReply(id=self._id, created=self._created, model=self._model, choices=await all_as_raw(choices),
                               usage=self._exchange.usage)

    async def _begin(self, index: int, lists: CompletionLogprobs, told: list[list[TokenLogprobs | None] | None]
                     ) -> None:
        """Before a choice's first token, what is echoed."""
        table, of = self._logprobs[index], told[index // self._n]
        if table is not None and of is not None and self._body.echo and index not in self._begun:
            self._begun.add(index)
            await in_background(table.begin, lists, self._prompts[index // self._n], of, self._echoed[index])

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """One frame per update. The first of a single choice begins with what is echoed; several are opened in order
        before it, as in chat."""
        begun = False
        told = self._exchange.prompt_logprobs
        async with self._exchange as exchange:
            counts = UsageOfChunks(self._body.include_usage, self._body.continuous_usage, lambda: exchange.usage)
            async for update in exchange.updates(self._n, with_output=not self._body.only_echoes):
                usage = counts.field()
                echoed = ""
                if not begun and len(self._echoed) > 1:
                    for index, text in enumerate(self._echoed):
                        yield self._frame(SampleUpdate(index, "", [], []), text, None, usage)
                elif not begun:
                    echoed = self._echoed[0]
                begun = True
                yield self._frame(update, echoed, await self._lists(update, told), usage)
            if self._body.include_usage:
                yield self._head + b'],"usage":' + _encode(exchange.usage) + b"}\n\n"
        yield DONE

    async def _lists(self, update: SampleUpdate, told: list[list[TokenLogprobs | None] | None]
                     ) -> CompletionLogprobs | None:
        table = self._logprobs[update.index]
        if table is None:
            return None
        lists = CompletionLogprobs([], [], [], [])
        await self._begin(update.index, lists, told)
        table.extend(lists, update)
        return lists

    def _frame(self, update: SampleUpdate, echoed: str, logprobs: CompletionLogprobs | None, usage: bytes) -> bytes:
        return b"".join([
            self._head, b'{"index":%d,"text":' % update.index, _encode(echoed + update.text), b',"logprobs":',
            _encode(logprobs), b',"finish_reason":', _encode(update.finish_reason), b',"stop_reason":',
            _encode(update.stop_reason), b"}]", usage, b"}\n\n"])
