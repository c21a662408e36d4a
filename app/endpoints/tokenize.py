"""POST /tokenize and /detokenize: the model's tokenizer, so that clients can count before they ask."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.endpoints.models import check_model
from quire.app.errors import ApiError
from quire.app.schemas.body import AtMost, read_body, unknown_of
from quire.app.schemas.chat import ChatRequest, RawMessages
from quire.app.schemas.sampling import check_at_most
from quire.app.schemas.unknown import UnknownFields
from quire.app.service import Service, service_of
from quire.engine.frontend.prompts import check_characters, off_the_loop

# What may be counted where the context is shorter, so that a client sees by how much its text is too long.
TOKENS_ALWAYS_TAKEN = 64 * 2**10
_BYTES_OF_AN_ID = 16  # in JSON, spaces included
_BYTES_OF_A_TEXTS_TOKEN = 64  # the same; a text that hardly has tokens may have 8 characters for each


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: RawMessages | None = None
    add_special_tokens: bool | None = None  # unset: yes for a prompt, no for messages
    add_generation_prompt: bool = True
    tools: list[dict[str, Any]] | None = None  # these two are given to the chat template, which may heed them
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    return_token_strs: bool = False


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    tokens: list[int]


async def tokenize(request: Request) -> Response:
    service = service_of(request)
    body = await read_body(request, TokenizeRequest, AtMost(
        "prompt", _most_tokens(service), _BYTES_OF_A_TEXTS_TOKEN))
    check_model(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give either prompt or messages.", "prompt")
    for name in ("tools", "chat_template_kwargs"):
        if getattr(body, name) and body.messages is None:
            raise ApiError(400, f"{name} belongs to messages, and a prompt has none.", name)
    return _json(await off_the_loop(_tokenized, service, body, unknown_of(request)))


def _tokenized(service: Service, body: TokenizeRequest, unknown: UnknownFields) -> bytes:
    tokenizer, most = service.tokenizer, _most_tokens(service)
    text, special = body.prompt or "", body.add_special_tokens is not False
    if body.messages is not None:
        chat = ChatRequest(messages=body.messages, chat_template_kwargs=body.chat_template_kwargs)
        chat.check(service.settings.serve)
        text = service.engine.chat_template.render(
            chat.conversation(unknown, most), tools=body.tools or None,
            add_generation_prompt=body.add_generation_prompt, **chat.chat_template_kwargs)
        special = bool(body.add_special_tokens)
    check_characters(text, most)
    least = tokenizer.counted_tokens(text, most + 1)
    tokens = [] if least > most else tokenizer.encode(text, special)
    found = max(least, len(tokens))
    if found > most:
        raise ApiError(400, f"The text has at least {found} tokens; /tokenize takes at most {most}. Please send it in "
                       "parts.", "prompt" if body.messages is None else "messages")
    texts = [tokenizer.token_text(id) for id in tokens] if body.return_token_strs else None
    info = service.engine.info
    return msgspec.json.encode({"count": len(tokens), "max_model_len": info.max_model_len if info else None,
                                "tokens": tokens, "token_strs": texts})


async def detokenize(request: Request) -> Response:
    service = service_of(request)
    most = _most_tokens(service)
    body = await read_body(request, DetokenizeRequest, AtMost("tokens", most, _BYTES_OF_AN_ID))
    check_model(request, body.model)
    check_at_most("tokens", len(body.tokens), most, what="ids")
    return _json(await off_the_loop(_detokenized, service, body.tokens))


def _detokenized(service: Service, tokens: list[int]) -> bytes:
    info = service.engine.info
    # The model's may be padded beyond the tokenizer's, and generation may produce what has no text.
    size = max(service.tokenizer.vocab_size, info.vocab_size if info else 0)
    if not all(0 <= id < size for id in tokens):
        raise ApiError(400, f"tokens must hold ids from 0 to {size - 1}.", "tokens")
    return msgspec.json.encode({"prompt": service.tokenizer.decode(tokens, skip_special_tokens=False)})


def _most_tokens(service: Service) -> int:
    info = service.engine.info
    return max(TOKENS_ALWAYS_TAKEN, info.max_model_len if info else 0)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
