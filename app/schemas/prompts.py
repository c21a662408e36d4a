"""The prompts of a body: one or several, each text or token ids. Read out of the field's JSON by the schemas that have
such a field.

Counts before it decodes: a body may hold millions of ids. As many as can be served take 0.1 s all the same, prompt by
prompt, so a long body is for a thread.
"""

from __future__ import annotations

import re

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.body import decode_field
from quire.app.schemas.sampling import check_at_most
from quire.engine.errors import context_length_error
from quire.engine.frontend.prompts import check_json

_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
# Which texts and lists may be mixed; msgspec has no type for it.
PROMPTS = msgspec.Meta(extra_json_schema={"anyOf": [{"type": "string"}, _IDS, {
    "type": "array", "items": {"anyOf": [{"type": "string"}, _IDS]}, "minItems": 1}]})

_MOST_ID_BYTES = 64  # in JSON, white space included
_TOKEN_IDS = re.compile(rb"\[\s*-?\d")  # how a list of them begins
_PROMPTS = msgspec.json.Decoder(str | list[msgspec.Raw])
_PART = msgspec.json.Decoder(str | list[int])


def prompts_of(field: str, value: msgspec.Raw, max_prompts: int, max_model_len: int, max_tokens: int, *,
               are_cut: bool = False) -> list[str | list[int]]:
    """The prompts in `value`, which is the body's `field`; `max_tokens` are to follow each. Those that `are_cut` may be
    longer than the model takes.

    Raises:
        ApiError, InvalidRequestError: they are none, or too many, or one is too long.
    """
    raw = bytes(value)
    limits = max_model_len, max_tokens, are_cut
    if _TOKEN_IDS.match(raw) or raw.startswith(b'"'):
        return [_part(field, raw, field, *limits)]
    if raw.startswith(b"["):
        check_at_most(field, _fewest_parts(raw), max_prompts, "--max-prompts", "prompts")
    prompts = decode_field(field, _PROMPTS, raw)
    if isinstance(prompts, str):
        return [prompts]
    if not prompts:
        raise ApiError(400, f"{field} must not be an empty list.", field)
    check_at_most(field, len(prompts), max_prompts, "--max-prompts", "prompts")
    return [_part(field, bytes(part), f"{field}[{i}]", *limits) for i, part in enumerate(prompts)]


def _part(field: str, raw: bytes, where: str, max_model_len: int, max_tokens: int, are_cut: bool) -> str | list[int]:
    if _TOKEN_IDS.match(raw):
        num_tokens = raw.count(b",") + 1
        if num_tokens >= max_model_len + (max_tokens == 0) and not are_cut:
            raise context_length_error(max_model_len, num_tokens, max_tokens)
        if len(raw) > _MOST_ID_BYTES * (num_tokens + 1):
            raise ApiError(400, f"{where} holds {num_tokens} token ids in {len(raw)} bytes; the server takes at "
                           f"most {_MOST_ID_BYTES} for each.", where)
    elif raw.startswith(b'"'):
        check_json(raw, max_model_len)
    try:
        return decode_field(where, _PART, raw)
    except ApiError as error:
        raise ApiError(400, f"{error.message} {field} takes text, a list of texts, token ids, or a list of token id "
                       "lists.", field) from None


def _fewest_parts(raw: bytes) -> int:
    """How many texts or lists a list holds at least. Only texts with backslashes before quotes, and lists among texts,
    make it more."""
    num_quotes = raw.count(b'"')
    return (num_quotes - raw.count(b'\\"')) // 2 if num_quotes else raw.count(b"[") - 1
