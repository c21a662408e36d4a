"""A call of a tool that must be, thought before: what such a request asks an engine for, and what its reply must be."""

from __future__ import annotations

import json

from quire import CompletionOutput, SamplingParams
from quire.app.replies.choice import Whole
from quire.app.replies.style import ReplyStyle
from quire.app.schemas.tools import ToolChoice

_SCHEMA = {"type": "object", "properties": {
    "city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]},
    "days": {"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 4, "maxItems": 4}},
    "required": ["city", "unit", "days"]}
_CHOICE = ToolChoice([{"type": "function", "function": {"name": name, "parameters": _SCHEMA}}
                      for name in ("weather", "forecast")], must_call=True, several=False)
_STYLE, _PROMPT = ReplyStyle.of("<think></think>"), "<think>"


def wish() -> SamplingParams:
    """The form is the one that such a request has."""
    return SamplingParams(n=2, seed=5, temperature=0.8, max_tokens=150,
                          structured_outputs=_STYLE.wanted_form(_CHOICE, None, _PROMPT, thinking_budget=6))


def require_call(sample: CompletionOutput) -> None:
    """Its parser reads it."""
    parser = _STYLE.parser(_CHOICE, _PROMPT)
    assert parser is not None and sample.finish_reason == "stop"
    reply = Whole.of(parser.push(sample.text) + parser.flush())
    [(call, arguments)] = reply.calls
    assert call.name in ("weather", "forecast") and not reply.content
    assert list(json.loads(arguments)) == ["city", "unit", "days"]
