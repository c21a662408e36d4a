"""POST /tokenize and /detokenize: the model's tokenizer, so that clients can count before they ask."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.conversation import images_to_be_sent, loaded_images, prompt_of
from quire.app.endpoints.models import check_model
from quire.app.errors import ApiError
from quire.app.openapi.operation import NAMES_MODEL, READS_BODY, operation
from quire.app.schemas import meanings
from quire.app.schemas.body import AtMost, read_body
from quire.app.schemas.chat import ChatRequest, RawMessages
from quire.app.schemas.described import about
from quire.app.schemas.media import SentImages
from quire.app.schemas.sampling import check_at_most
from quire.app.schemas.tools import checked_choice
from quire.app.service import Service, service_of
from quire.engine.frontend.media.placeholders import expanded, num_image_tokens
from quire.engine.frontend.prompts import check_characters, off_the_loop

# What may be counted where the context is shorter, so that a client sees by how much its text is too long.
TOKENS_ALWAYS_TAKEN = 64 * 2**10
_BYTES_OF_AN_ID = 16  # in JSON, spaces included
_BYTES_OF_A_TEXTS_TOKEN = 64  # the same; a text that hardly has tokens may have 8 characters for each


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: Annotated[str | None, meanings.MODEL] = None
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
    mm_processor_kwargs: Annotated[dict[str, Any] | None, meanings.PROCESSOR_KWARGS] = None
    return_token_strs: Annotated[bool, about("Whether the reply has each token's text, too.")] = False


class TokenizeReply(msgspec.Struct):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str | None, meanings.MODEL] = None
    tokens: Annotated[list[int], about("Token ids.")]


class DetokenizeReply(msgspec.Struct):
    prompt: str


@operation("Turn a text or a conversation into token ids", "tokens", takes=TokenizeRequest, gives=TokenizeReply,
           refuses=READS_BODY | NAMES_MODEL, example={"prompt": "The sky is blue."})
async def tokenize(request: Request) -> Response:
    service = service_of(request)
    body = await read_body(request, TokenizeRequest, most_body(service, "prompt"))
    check_model(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give either prompt or messages.", "prompt")
    for name in ("tools", "chat_template_kwargs", "continue_final_message", "mm_processor_kwargs"):
        if getattr(body, name) and body.messages is None:
            raise ApiError(400, f"{name} belongs to messages, and a prompt has none.", name)
    images = images_to_be_sent(request, body.mm_processor_kwargs)
    if body.messages is None:
        text, field, special = body.prompt or "", "prompt", body.add_special_tokens is not False
    else:
        text = await off_the_loop(_prompt, service, body, images)
        field, special = "messages", bool(body.add_special_tokens)
    tokens = await counted(service, text, field, images, with_special=special)
    return _json(await off_the_loop(_reply, service, tokens, with_texts=body.return_token_strs))


def _prompt(service: Service, body: TokenizeRequest, images: SentImages) -> str:
    assert body.messages is not None
    chat = ChatRequest(messages=body.messages, chat_template_kwargs=body.chat_template_kwargs, tools=body.tools)
    chat.check(service.settings.serve)
    choice = checked_choice(chat.tools, chat.tool_choice, several=chat.parallel_tool_calls)
    return prompt_of(service, chat.conversation(images, most_tokens(service)), choice,
                     variables=chat.template_variables, add_generation_prompt=body.add_generation_prompt,
                     continue_final_message=body.continue_final_message)


def _reply(service: Service, tokens: list[int], *, with_texts: bool) -> bytes:
    texts = [service.tokenizer.token_text(id) for id in tokens] if with_texts else None
    info = service.engine.info
    return msgspec.json.encode(TokenizeReply(len(tokens), info.max_model_len if info else None, tokens, texts))


async def counted(service: Service, text: str, field: str, images: SentImages, *, with_special: bool
                  ) -> list[int]:
    """The tokens of a prompt, images among them. Raises what `token_ids` and `loaded_images` raise."""
    tokens = await off_the_loop(token_ids, service, text, field, with_special=with_special)
    vision = service.engine.model_config.vision
    loaded = await loaded_images(service, images)
    try:
        of_images = num_image_tokens(loaded.images, vision)
        _check_count(service, len(tokens) - len(loaded.images) + of_images, field)
        return expanded(tokens, loaded.images, vision)[0]
    finally:
        loaded.release()


def token_ids(service: Service, text: str, field: str, *, with_special: bool) -> list[int]:
    """Of a text that the body's `field` made. Raises ApiError, InvalidRequestError for more than `most_tokens`."""
    tokenizer, most = service.tokenizer, most_tokens(service)
    check_characters(text, most)
    least = tokenizer.counted_tokens(text, most + 1)
    tokens = [] if least > most else tokenizer.encode(text, with_special)
    _check_count(service, max(least, len(tokens)), field)
    return tokens


def _check_count(service: Service, found: int, field: str) -> None:
    if found > (most := most_tokens(service)):
        raise ApiError(400, f"The prompt has at least {found} tokens; at most {most} are counted. Please send it in "
                       "parts.", field)


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


def most_body(service: Service, field: str) -> AtMost | None:
    """How long a body may be whose `field` is counted; images in it have the server's own limit."""
    if service.engine.takes_images:
        return None
    return AtMost(field, most_tokens(service), _BYTES_OF_A_TEXTS_TOKEN)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
