"""POST /generate, as vLLM's demonstration server had it: {"text": [prompt + output, ...]}; streamed, lines of JSON with
all texts so far.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.background import in_background
from quire.app.endpoints.models import check_model
from quire.app.exchange import Exchange
from quire.app.middleware.body_limit import body_was_read
from quire.app.openapi.operation import GENERATES, LINES, operation
from quire.app.schemas.body import by_size, read_body
from quire.app.schemas.completions import DEFAULT_MAX_TOKENS
from quire.app.schemas.generate import GenerateReply, GenerateRequest
from quire.app.service import record_of, service_of
from quire.app.sse import LineStream
from quire.app.telemetry.record import Asked

# A line repeats all that came before: of long texts, one comes when they have grown by this part of them.
_GROWTH = 1024

_encode = msgspec.json.encode


@operation("Continue a text, as vLLM's first server did", "generation", takes=GenerateRequest, gives=GenerateReply,
           other_media={LINES: GenerateReply}, refuses=GENERATES, example={"prompt": "The sky is"})
async def generate(request: Request) -> Response:
    service, record = service_of(request), record_of(request)
    exchange = Exchange(request)
    body = await read_body(request, GenerateRequest, from_curl=True)
    model = check_model(request, body.model)
    with service.naming_limits():
        limits = service.settings.serve.max_prompts, exchange.max_model_len
        prompts = await by_size(body.prompt, body.prompts, *limits)
    body = msgspec.structs.replace(body, prompt=msgspec.Raw())
    body_was_read(request)
    body.check(service.settings.serve, len(prompts))
    body.check_reply(prompts)
    exchange.check_prompts(1)
    prompt = prompts[0]
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = body.sampling_params(service.model_defaults, max_tokens, None)
    record.asked = Asked("text_completion", model, body.stream, params, f"cmpl-{record.request_id}")
    text = prompt if isinstance(prompt, str) else await in_background(service.tokenizer.decode, prompt, False)
    with service.naming_limits():
        await exchange.submit(prompt, params, priority=body.priority, cache_salt=body.cache_salt,
                              add_special_tokens=body.add_special_tokens is not False)
    if body.stream:
        return exchange.stream(_lines(exchange, [text] * params.n), LineStream)
    texts = [text] * params.n
    async with exchange:
        async for update in exchange.updates(params.n):
            texts[update.index] += update.text
    return Response(_encode(GenerateReply(texts)), headers=exchange.headers, media_type="application/json")


async def _lines(exchange: Exchange, texts: list[str]) -> AsyncGenerator[bytes, None]:
    """The sequences of a beam search come together, in one line."""
    size, grown, num_unfinished = sum(map(len, texts)), 0, len(texts)
    async with exchange:
        async for update in exchange.updates(len(texts)):
            texts[update.index] += update.text
            grown += len(update.text)
            num_unfinished -= update.finish_reason is not None
            if num_unfinished == 0 or (update.cumulative_logprob is None and grown * _GROWTH >= size):
                size, grown = size + grown, 0
                yield LineStream.frame(_encode(GenerateReply(texts)))
