"""Bodies of the right fields and of any values: each is served, or refused with a word about it, and none is a 5xx.

`tests/fuzz/request_bodies.py` is what holds it to that; it mutates bytes, this makes values.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import request_bodies
from tests.fuzz.request_bodies import PATHS

TEXT = st.text(max_size=8) | st.sampled_from(["", "user", "\ud83d\ude00", "<|im_start|>", "\u0000", "a" * 300])
SCALAR = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | TEXT
ANY = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
                   max_leaves=6)
TYPES = st.sampled_from(["text", "input_text", "output_text", "image_url", "tool_use", "tool_result", "function_call",
                         "function_call_output", "message", "reasoning", "thinking", "video"])


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with any of these fields, each as it should be or of any value."""
    return st.fixed_dictionaries({}, optional={name: value | ANY for name, value in fields.items()})


CALL = some(id=TEXT, type=st.just("function"), function=some(name=TEXT, arguments=st.just("{}") | TEXT))
PART = some(type=TYPES, text=TEXT, image_url=some(url=TEXT), id=TEXT, tool_use_id=TEXT, name=TEXT, input=ANY,
            content=TEXT, call_id=TEXT, arguments=TEXT, output=TEXT, thinking=TEXT, signature=TEXT)
MESSAGE = some(role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "critic"]),
               content=TEXT | st.lists(PART, max_size=3), name=TEXT, tool_calls=st.lists(CALL, max_size=2),
               tool_call_id=TEXT, refusal=TEXT, reasoning=TEXT)
TOOL = some(type=st.just("function"), function=some(name=TEXT, parameters=ANY, strict=st.booleans()), name=TEXT,
            input_schema=ANY)
BODY = some(messages=st.lists(MESSAGE, max_size=4), input=TEXT | st.lists(MESSAGE | PART, max_size=4), prompt=TEXT,
            system=TEXT, max_tokens=st.integers(1, 9), stream=st.booleans(), tools=st.lists(TOOL, max_size=2),
            tool_choice=TEXT, stop=TEXT | st.lists(TEXT, max_size=5), response_format=some(type=TEXT, json_schema=ANY),
            temperature=st.floats(0, 2), n=st.integers(1, 3), logit_bias=st.dictionaries(TEXT, st.floats(), max_size=2),
            chat_template_kwargs=ANY, reasoning=ANY, thinking=ANY, text=ANY, stream_options=ANY, seed=ANY)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), BODY)
def test_a_body_of_any_values_is_served_or_refused(path: str, body: dict[str, Any]) -> None:
    request_bodies.target(bytes([PATHS.index(path)]) + json.dumps(body).encode())
