"""From the bytes of a request body to a typed request, or to a 400 that names the field at fault.

Nothing is ignored in silence: a field does what it says, is known to be harmless, or is refused by name. Nothing is
built that nobody will look at: one call that decodes holds up the event loop from whichever thread. Called by the
endpoints.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from quire.app.errors import ApiError

T = TypeVar("T", bound=msgspec.Struct)

# What OpenAI's clients may send that changes nothing in the reply of a server like this one.
HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
})

# Known fields that this version does not implement, each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none",), "functions": ([],), "function_call": ("none",),
    "response_format": ({"type": "text"},), "structured_outputs": (), "guided_json": (), "guided_regex": (),
    "guided_choice": (), "guided_grammar": (), "guided_decoding_backend": (), "guided_whitespace_pattern": (),
    "logit_bias": ({},), "bad_words": ([],), "allowed_token_ids": (), "logprob_token_ids": (), "prompt_logprobs": (),
    "best_of": (1,), "suffix": ("",), "use_beam_search": (False,), "length_penalty": (1.0,), "early_stopping": (False,),
    "truncate_prompt_tokens": (), "truncation_side": (), "prompt_embeds": (), "reasoning_effort": ("none",),
    "include_reasoning": (True, False), "thinking_token_budget": (-1,), "verbosity": ("medium",),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (), "documents": ([],),
    "chat_template": (), "continue_final_message": (False,), "mm_processor_kwargs": (), "media_io_kwargs": (),
    "return_token_ids": (False,), "return_tokens_as_token_ids": (False,), "return_token_offsets": (False,),
    "return_prompt_text": (False,), "request_id": (), "session_id": (), "stream_interval": (1,),
    "repetition_detection": (), "kv_transfer_params": (), "ec_transfer_params": (), "vllm_xargs": ({},),
}

# Each list or object takes a hundred bytes of memory where two of the body may say so. Texts may hold brackets too.
MOST_BRACKETS = 2**20

# In JSON, for each field but those that hold what the model is to read or write on.
MOST_FIELD_BYTES = 2**20
_LONG_FIELDS = frozenset({"prompt", "messages", "tokens"})
_MOST_NEUTRAL_BYTES = 200  # no value that asks for nothing is longer

_NULL = msgspec.Raw(b"null")
_ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")


async def read_body(request: Request, schema: type[T]) -> T:
    """The request's body as a `schema`. Raises ApiError (400, 413)."""
    # A page in a browser may send any other type to any address without asking first: this is what stops it.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "The content-type must be application/json.")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ApiError(415, f"The content-encoding {encoding[:50]!r} is not supported; send the body as it is.")
    return parse_body(await request.body(), schema)


def parse_body(raw: bytes, schema: type[T]) -> T:
    """`raw` as a `schema`; null counts as "not given". Raises ApiError (400)."""
    if raw.count(b"[") + raw.count(b"{") > MOST_BRACKETS:
        raise ApiError(400, f"The request body holds more than {MOST_BRACKETS} opening brackets, and so perhaps as "
                       "many lists and objects. Please send fewer prompts or messages at once.")
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise ApiError(400, "The request body must be a JSON object.") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _unreadable(error) from None
    decoders = _decoders(schema)
    values = {}
    for name, value in fields.items():
        if name in HARMLESS or value == _NULL:
            continue
        if name not in decoders:
            _refuse_unless_neutral(name, value)
            continue
        if len(value) > MOST_FIELD_BYTES and name not in _LONG_FIELDS:
            raise ApiError(400, f"{name} is {len(value)} bytes long, and may have at most {MOST_FIELD_BYTES}.", name)
        decoder = decoders[name]
        values[name] = value if decoder is None else decode_field(name, decoder, value)
    for field in msgspec.structs.fields(schema):
        if field.required and field.name not in values:
            raise ApiError(400, f"The field {field.name} is missing.", field.name)
    return schema(**values)


@cache
def _decoders(schema: type[msgspec.Struct]) -> dict[str, msgspec.json.Decoder[Any] | None]:
    """By field; None for one whose JSON the schema reads itself."""
    return {field.name: None if field.type is msgspec.Raw else msgspec.json.Decoder(field.type)
            for field in msgspec.structs.fields(schema)}


def decode_field(name: str, decoder: msgspec.json.Decoder[T], value: msgspec.Raw | bytes) -> T:
    """Raises ApiError (400) that names the field, or the place in it."""
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _AT.search(text)
        where = name + (found["path"] if found else "")
        raise ApiError(400, f"{where}: {text[:found.start()] if found else text}.", where) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> ApiError:
    return ApiError(400, f"The request body is not JSON that can be read: {error}.")


def _refuse_unless_neutral(name: str, raw: msgspec.Raw) -> None:
    neutral = UNSUPPORTED.get(name)
    if neutral is None:
        raise ApiError(400, f"There is no request field {name[:100]!r}.", name[:100])
    value = decode_field(name, _ANYTHING, raw) if len(raw) <= _MOST_NEUTRAL_BYTES else object()
    # 1 and 1.0 are one number to JSON; true is none.
    if not any(value == allowed and isinstance(value, bool) is isinstance(allowed, bool) for allowed in neutral):
        allowed_values = " or ".join(msgspec.json.encode(allowed).decode() for allowed in neutral)
        raise ApiError(400, f"{name} is not supported by this version" +
                       (f"; leave it out, or send {allowed_values}." if neutral else "; leave it out."), name)
