"""From the bytes of a request body to a typed request, or to a 400 that names the field at fault.

Nothing is ignored in silence: a field does what it says, is known to be harmless, is refused by name, or is named in a
header of the reply (`quire.app.schemas.unknown`). Nothing is built that nobody will look at: one call that decodes
holds up the event loop from whichever thread, so bodies of many values are refused before (`structure`), and each call
decodes one field, message or part. Called by the endpoints.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, ParamSpec, TypeVar

import msgspec
from starlette.requests import Request

from quire.app.background import in_background
from quire.app.errors import ApiError
from quire.app.schemas.described import is_raw
from quire.app.schemas.structure import SMALL_BYTES, check_structure
from quire.app.schemas.unknown import OF_CLIENTS, OfOthers, UnknownFields, elsewhere
from quire.app.service import record_of, service_of
from quire.engine.messages import UNREADABLE

T = TypeVar("T", bound=msgspec.Struct)
V = TypeVar("V")
P = ParamSpec("P")

# What OpenAI's and Anthropic's clients may send that changes nothing in the reply of a server like this one.
HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "cache_control",
})

# Known fields that this version does not implement, each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none",), "parallel_tool_calls": (True, False),
    "functions": ([],), "function_call": ("none",),
    "logprob_token_ids": (),
    "suffix": ("",),
    "truncate_prompt_tokens": (), "truncation_side": (), "prompt_embeds": (), "reasoning_effort": ("none",),
    "include_reasoning": (True, False), "thinking_token_budget": (-1,),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (), "documents": ([],),
    "chat_template": (), "continue_final_message": (False,), "mm_processor_kwargs": (), "media_io_kwargs": (),
    "return_token_ids": (False,), "return_tokens_as_token_ids": (False,), "return_token_offsets": (False,),
    "return_prompt_text": (False,), "request_id": (), "stream_interval": (1,),
    "mcp_servers": ([],), "container": (), "thread": (),  # of Anthropic's API
    "repetition_detection": (), "kv_transfer_params": (), "ec_transfer_params": (), "vllm_xargs": ({},),
    "previous_response_id": (), "conversation": (), "background": (False,), "truncation": ("disabled",),
    "context_management": ([],),
}

# Of some of them, what to do.
_INSTEAD = {
    **dict.fromkeys(("previous_response_id", "conversation"),
                    "This server stores no responses: send the whole conversation, with the output of earlier ones."),
    "background": "This server stores no responses to be fetched later: wait for the reply, or send stream: true.",
    **dict.fromkeys(("truncation", "context_management"),
                    "Nothing of a conversation is left out here: send no more of it than the model has room for."),
}

# In JSON, for each field but those that hold what the model is to read or write on.
MOST_FIELD_BYTES = 2**20
_MOST_BYTES = {"chat_template_kwargs": 64 * 2**10,  # of anything at all, which takes longer to decode
               **dict.fromkeys(("tools", "text", "response_format", "structured_outputs", "guided_json",
                                "structural_tag", "output_config", "output_format"), 300 * 2**10)}
_LONG_FIELDS = frozenset({"prompt", "messages", "system", "tokens", "input"})
_MOST_NEUTRAL_BYTES = 200  # no value that asks for nothing is longer

_MOST_SHOWN_BYTES = 4096  # a longer value is not decoded again to show the part of it that is wrong
_MOST_SHOWN_CHARACTERS = 60

_OF_BROWSERS = frozenset({"origin", "referer", "sec-fetch-site"})
_BOM = b"\xef\xbb\xbf"
_NULL = msgspec.Raw(b"null")
_EMPTY = (msgspec.Raw(b"[]"), msgspec.Raw(b"{}"), msgspec.Raw(b'""'))  # false and 0 may mean something
# msgspec itself takes 15 us for some floats.
_ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=float)
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_WRONG_TYPE = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`")
_STEP = re.compile(r"\[(\d+)\]|\.([^.\[]+)")
# How JSON calls msgspec's types. Null is "not given", which nobody needs to be told.
_JSON_TYPES = {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
               "object": "an object", "null": ""}


class AtMost(NamedTuple):
    """How many tokens a body may be about, in the field `param`."""

    param: str
    tokens: int
    bytes_of_one: int  # in JSON


async def read_body(request: Request, schema: type[T], most: AtMost | None = None, *, from_curl: bool = False) -> T:
    """The request's body as a `schema`. Nothing but the result holds on to it. `from_curl`: JSON may be called a form,
    as curl does that is not told otherwise.

    Raises:
        ApiError: 400; 413 for a body of more than `most`, which is not looked at.
    """
    # A page in a browser may send any other type to any address without asking first: this is what stops it.
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = sent == "application/x-www-form-urlencoded" and not _OF_BROWSERS & set(request.headers.keys())
    if sent != "application/json" and not (from_curl and is_form):
        raise ApiError(400, "The content-type must be application/json; of curl: -H 'Content-Type: "
                       "application/json'.")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ApiError(415, f"The content-encoding {encoding[:50]!r} is not supported; send the body as it is.")
    buffer = io.BytesIO()  # joining pieces would take 10 ms at once
    async for piece in request.stream():  # Request.body would keep it
        buffer.write(piece)
    raw = buffer.getvalue()
    if most is not None and len(raw) > (max_bytes := most.tokens * most.bytes_of_one):
        raise ApiError(413, f"The body is longer than {max_bytes} bytes; {request.url.path} takes at most "
                       f"{most.tokens} tokens. Please send them in parts.", most.param)
    unknown = unknown_of(request)
    return await by_size(raw, parse_body, raw, schema, unknown)


async def by_size(raw: bytes | msgspec.Raw, job: Callable[P, V], *args: P.args, **kwargs: P.kwargs) -> V:
    """What `job` makes of `raw`: in the background where that is long enough to hold up the event loop."""
    if len(raw) > SMALL_BYTES:
        return await in_background(job, *args, **kwargs)
    return job(*args, **kwargs)


def unknown_of(request: Request) -> UnknownFields:
    # That header says that the body has fields of one of Anthropic's betas, which come and go.
    take_all = service_of(request).settings.serve.unknown_fields == "warn" or "anthropic-beta" in request.headers
    return UnknownFields(record_of(request).ignored, take_all=take_all)


def parse_body(raw: bytes, schema: type[T], unknown: UnknownFields) -> T:
    """`raw` as a `schema`; null counts as "not given". Raises ApiError (400)."""
    fields = _split(raw)
    decoders = _decoders(schema)
    of_others: dict[str, OfOthers] = getattr(schema, "OF_OTHERS", {})
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if value == _NULL:
            continue
        most = _MOST_BYTES.get(name, MOST_FIELD_BYTES)
        if len(value) > most and name not in _LONG_FIELDS and (name in decoders or name in HARMLESS):
            raise ApiError(400, f"{name} is {len(value)} bytes long, and may have at most {most} bytes.", name)
        if name in HARMLESS and name not in decoders:
            continue
        if name not in decoders:
            if name in of_others:
                if not _asks_for_nothing(name, value, of_others[name].neutral):
                    raise ApiError(400, f"{name} is no field of this path: {of_others[name].instead}.", name)
            elif name in UNSUPPORTED:
                _refuse_unless_neutral(name, value)
            else:
                unknown.meet(name, name, decoders, OF_CLIENTS, is_empty=value in _EMPTY)
            continue
        decoder = decoders[name]
        decoded = values[name] = value if decoder is None else decode_field(name, decoder, value)
        if isinstance(decoded, msgspec.Struct):
            _meet_unknown_within(name, value, decoded.__struct_fields__, unknown)
    for name in _required(schema):
        if name not in values:
            belongs = next(filter(None, map(elsewhere, fields.keys() - decoders.keys())), "")
            raise ApiError(400, f"The field {name} is missing. {belongs}".strip(), name)
    return schema(**values)


def _meet_unknown_within(name: str, value: msgspec.Raw, known: tuple[str, ...], unknown: UnknownFields) -> None:
    for inner, sent in msgspec.json.decode(value, type=dict[str, msgspec.Raw]).items():
        if inner not in known and sent != _NULL:
            unknown.meet(inner, f"{name}.{inner}", known)


def _split(raw: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body, each still in JSON."""
    check_structure(raw)
    try:
        return msgspec.json.decode(raw.removeprefix(_BOM), type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise ApiError(400, "The request body must be a JSON object.") from None
    except UNREADABLE as error:
        raise _unreadable(error) from None


@cache
def _decoders(schema: type[msgspec.Struct]) -> dict[str, msgspec.json.Decoder[Any] | None]:
    """By field; None for one whose JSON the schema reads itself."""
    return {field.name: None if is_raw(field.type) else msgspec.json.Decoder(field.type, float_hook=float)
            for field in msgspec.structs.fields(schema)}


@cache  # msgspec takes 0.2 ms to tell
def _required(schema: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(schema) if field.required]


def decode_field(name: str, decoder: msgspec.json.Decoder[V], value: msgspec.Raw | bytes) -> V:
    """Raises ApiError (400) that names the field, or the place in it, what belongs there and what was sent."""
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        text = str(error)
        wrong = _WRONG_TYPE.match(text)
        if wrong and wrong["got"] == "float" and "int" in wrong["wanted"].split(" | "):
            # 100.0 and 1e2 are integers to JSON, and some languages write every number so.
            try:
                return msgspec.json.decode(value, type=decoder.type, strict=False)
            except msgspec.ValidationError as again:
                text = str(again)
        raise _misfit(name, text, value) from None
    except UNREADABLE as error:
        raise _unreadable(error) from None


def _misfit(name: str, text: str, value: msgspec.Raw | bytes) -> ApiError:
    """`text` is msgspec's."""
    found = _AT.search(text)
    path = found["path"] if found else ""
    where = name + path
    wrong = _WRONG_TYPE.match(text)
    if wrong is None:
        return ApiError(400, f"{where}: {text[:found.start()] if found else text}.", where)
    wanted = [word for word in (_JSON_TYPES.get(kind, kind) for kind in wrong["wanted"].split(" | ")) if word]
    got = _shown(value, path) or _JSON_TYPES.get(wrong["got"]) or wrong["got"]
    return ApiError(400, f"{where} must be {' or '.join(wanted)}, got {got}.", where)


def _shown(value: msgspec.Raw | bytes, path: str) -> str:
    """The beginning of what is at `path` in `value`, in JSON; empty where that takes too long to find."""
    found = bytes(memoryview(value)[:_MOST_SHOWN_CHARACTERS + 1]) if not path else b""
    if path and len(value) <= _MOST_SHOWN_BYTES:
        with suppress(msgspec.MsgspecError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            part = _ANYTHING.decode(value)
            for index, key in _STEP.findall(path):
                part = part[key] if key else part[int(index)]
            found = msgspec.json.encode(part)
    text = found.decode(errors="replace")
    return text if len(text) <= _MOST_SHOWN_CHARACTERS else text[:_MOST_SHOWN_CHARACTERS] + "..."


def _unreadable(error: Exception) -> ApiError:
    return ApiError(400, f"The request body is not JSON that can be read: {error}.")


def _asks_for_nothing(name: str, raw: msgspec.Raw, neutral: tuple[Any, ...]) -> bool:
    value = decode_field(name, _ANYTHING, raw) if len(raw) <= _MOST_NEUTRAL_BYTES else object()
    # 1 and 1.0 are one number to JSON; true is none.
    return any(value == allowed and isinstance(value, bool) is isinstance(allowed, bool) for allowed in neutral)


def _refuse_unless_neutral(name: str, raw: msgspec.Raw) -> None:
    neutral = UNSUPPORTED[name]
    if not _asks_for_nothing(name, raw, neutral):
        allowed_values = " or ".join(msgspec.json.encode(allowed).decode() for allowed in neutral)
        message = f"{name} is not supported by this version; leave it out" + (
            f", or send {allowed_values}." if neutral else ".")
        raise ApiError(400, f"{message} {_INSTEAD.get(name, '')}".strip(), name)
