"""POST /v1/embeddings: a vector for each input. Inputs are requests of their own to the engine, which computes them
beside whatever else is asked."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.endpoints.models import check_model
from quire.app.exchange import Exchange
from quire.app.json_pieces import as_raw
from quire.app.middleware.body_limit import body_was_read
from quire.app.openapi.operation import GENERATES, operation
from quire.app.schemas.body import by_size, read_body
from quire.app.schemas.embeddings import EmbeddingObject, EmbeddingReply, EmbeddingRequest, EmbeddingUsage
from quire.app.service import record_of, service_of
from quire.app.telemetry.record import Asked
from quire.engine.errors import InvalidRequestError


@operation("Embed texts", "embeddings", takes=EmbeddingRequest, gives=EmbeddingReply, refuses=GENERATES,
           example={"input": "The sky is blue."})
async def embeddings(request: Request) -> Response:
    service, record = service_of(request), record_of(request)
    exchange = Exchange(request)
    body = await read_body(request, EmbeddingRequest)
    params = body.pooling_params()
    model = check_model(request, body.model)
    with _named_input(), service.naming_limits():
        limits = service.settings.serve.max_prompts, exchange.max_model_len
        inputs = await by_size(body.input, body.inputs, *limits)
    body = msgspec.structs.replace(body, input=msgspec.Raw())  # which would hold all of what was sent
    body_was_read(request)
    exchange.check_prompts(len(inputs), "input")
    reply_id = f"embd-{record.request_id}"
    record.asked = Asked("embeddings", model, False, None, reply_id)
    with _named_input(), service.naming_limits():
        for one in inputs:
            await exchange.submit_embedding(one, params, priority=body.priority, cache_salt=body.cache_salt,
                                            add_special_tokens=body.add_special_tokens)
    data = [msgspec.Raw()] * len(inputs)
    async with exchange:
        async for index, vector in exchange.vectors():
            shown = _base64(vector) if body.encoding_format == "base64" else vector.tolist()
            data[index] = as_raw(EmbeddingObject(index, shown))
    usage = EmbeddingUsage(record.prompt_tokens, record.prompt_tokens)
    reply = EmbeddingReply(id=reply_id, created=service.now(), model=model, data=data, usage=usage)
    return Response(msgspec.json.encode(reply), headers=exchange.headers, media_type="application/json")


def _base64(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()


@contextmanager
def _named_input() -> Iterator[None]:
    """What is said of the prompt is about the input here."""
    try:
        yield
    except InvalidRequestError as error:
        if error.param != "prompt":
            raise
        raise InvalidRequestError(error.message, "input") from None
