"""POST /tokenize and /detokenize: the model's tokenizer, so that clients can count before they ask."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.conversation import prompt_of
from quire.app.endpoints.models import check_model
from quire.app.errors import ApiError
from quire.app.openapi.operation import NAMES_MODEL, READS_BODY, operation
from quire.app.schemas.body import AtMost, read_body, unknown_of
from quire.app.schemas.chat import ChatRequest, RawMessages
from quire.app.schemas.described import about
from quire.app.schemas.sampling import check_at_most
from quire.app.schemas.tools import checked_choice
from quire.app.schemas.unknown import UnknownFields
from quire.app.service import Service, service_of
from quire.engine.frontend.prompts import check_characters, off_the_loop

# What may be counted where the context is shorter, so that a client sees by how much its text is too long.
TOKENS_ALWAYS_TAKEN = 64 * 2**10
_BYTES_OF_AN_ID = 16  # in JSON, spaces included
BYTES_OF_A_TEXTS_TOKEN = 64  # the same; a text that hardly has tokens may have 8 characters for each


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: Annotated[str | None, about("A name of `/v1/models`; left out, the model that is served.")] = None
    prompt: Annotated[str | None, about("A text.")] = None
    messages: Annotated[RawMessages | None, about("A conversation, which the chat template makes a prompt of.")] = None
    add_special_tokens: Annotated[
        bool | None, about("Whether the tokenizer puts its own tokens around it; left out: around a prompt, and not "
                           "around messages.")] = None
    add_generation_prompt: Annotated[bool, about("Whether the template begins the assistant's message.")] = True
    continue_final_message: Annotated[
        bool, about("Whether the prompt ends where the last message, the assistant's, ends.")] = False
    tools: Annotated[list[dict[str, Any]] | None, about("Of a conversation: functions that may be called.")] = None
    chat_template_kwargs: Annotated[
        dict[str, Any], about("Of a conversation: variables of the chat template.")
    ] = msgspec.field(default_factory=dict)
    return_token_strs: Annotated[bool, about("Whether the reply has each token's text, too.")] = False


class TokenizeReply(msgspec.Struct):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str | None, about("A name of `/v1/models`; left out, the model that is served.")] = None
    tokens: Annotated[list[int], about("Token ids.")]


class DetokenizeReply(msgspec.Struct):
    prompt: str


@operation("Turn a text or a conversation into token ids", "tokens", takes=TokenizeRequest, gives=TokenizeReply,
           refuses=READS_BODY | NAMES_MODEL, example={"prompt": "The sky is blue."})
async def tokenize(request: Request) -> Response:
    service = service_of(request)
    body = await read_body(request, TokenizeRequest, AtMost(
        "prompt", most_tokens(service), BYTES_OF_A_TEXTS_TOKEN))
    check_model(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give either prompt or messages.", "prompt")
    for name in ("tools", "chat_template_kwargs", "continue_final_message"):
        if getattr(body, name) and body.messages is None:
            raise ApiError(400, f"{name} belongs to messages, and a prompt has none.", name)
    return _json(await off_the_loop(_tokenized, service, body, unknown_of(request)))


def _tokenized(service: Service, body: TokenizeRequest, unknown: UnknownFields) -> bytes:
    text, special = body.prompt or "", body.add_special_tokens is not False
    if body.messages is not None:
        chat = ChatRequest(messages=body.messages, chat_template_kwargs=body.chat_template_kwargs, tools=body.tools)
        chat.check(service.settings.serve)
        choice = checked_choice(chat.tools, chat.tool_choice, several=chat.parallel_tool_calls)
        text = prompt_of(service, chat.conversation(unknown, most_tokens(service)), choice,
                         variables=chat.template_variables, add_generation_prompt=body.add_generation_prompt,
                         continue_final_message=body.continue_final_message)
        special = bool(body.add_special_tokens)
    tokens = token_ids(service, text, "prompt" if body.messages is None else "messages", with_special=special)
    texts = [service.tokenizer.token_text(id) for id in tokens] if body.return_token_strs else None
    info = service.engine.info
    return msgspec.json.encode(TokenizeReply(len(tokens), info.max_model_len if info else None, tokens, texts))


def token_ids(service: Service, text: str, field: str, *, with_special: bool) -> list[int]:
    """Of a text that the body's `field` made. Raises ApiError, InvalidRequestError for more than `most_tokens`."""
    tokenizer, most = service.tokenizer, most_tokens(service)
    check_characters(text, most)
    least = tokenizer.counted_tokens(text, most + 1)
    tokens = [] if least > most else tokenizer.encode(text, with_special)
    found = max(least, len(tokens))
    if found > most:
        raise ApiError(400, f"The text has at least {found} tokens; at most {most} are counted. Please send it in "
                       "parts.", field)
    return tokens


@operation("Turn token ids into a text", "tokens", takes=DetokenizeRequest, gives=DetokenizeReply,
           refuses=READS_BODY | NAMES_MODEL, example={"tokens": [504, 6376, 314]})
async def detokenize(request: Request) -> Response:
    service = service_of(request)
    most = most_tokens(service)
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
    return msgspec.json.encode(DetokenizeReply(service.tokenizer.decode(tokens, skip_special_tokens=False)))


def most_tokens(service: Service) -> int:
    """That are counted at a time."""
    info = service.engine.info
    return max(TOKENS_ALWAYS_TAKEN, info.max_model_len if info else 0)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
