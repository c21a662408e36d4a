"""POST /tokenize and /detokenize: the model's tokenizer, so that clients can count before they ask."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.endpoints.models import check_model
from app.errors import ApiError
from app.schemas.body import read_body
from app.schemas.chat import ChatRequest
from app.service import service_of


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None  # unset: yes for a prompt, no for messages
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    tokens: list[int]


async def tokenize(request: Request) -> Response:
    service = service_of(request)
    body = await read_body(request, TokenizeRequest)
    check_model(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give either prompt or messages.", "prompt")
    text, special = body.prompt or "", body.add_special_tokens is not False
    if body.messages is not None:
        conversation = ChatRequest(messages=body.messages).conversation()
        text = service.engine.chat_template.render(conversation, add_generation_prompt=body.add_generation_prompt)
        special = bool(body.add_special_tokens)
    tokens = await asyncio.to_thread(service.tokenizer.encode, text, special)
    texts = [service.tokenizer.token_text(id) for id in tokens] if body.return_token_strs else None
    info = service.engine.info
    return _json({"count": len(tokens), "max_model_len": info.max_model_len if info else None, "tokens": tokens,
                  "token_strs": texts})


async def detokenize(request: Request) -> Response:
    service = service_of(request)
    body = await read_body(request, DetokenizeRequest)
    check_model(request, body.model)
    size = service.tokenizer.vocab_size
    if not all(0 <= id < size for id in body.tokens):
        raise ApiError(400, f"tokens must hold ids from 0 to {size - 1}.", "tokens")
    return _json({"prompt": await asyncio.to_thread(service.tokenizer.decode, body.tokens, skip_special_tokens=False)})


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
