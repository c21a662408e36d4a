"""From the form that a caller asked for to a grammar in llguidance's language. Whether it can be followed is for
`grammar.check` to find out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from quire.engine.grammar.costs import check_gbnf, check_lark, check_schema
from quire.engine.grammar.json_options import closed, json_options
from quire.engine.grammar.regex import with_plain_digits
from quire.engine.grammar.structural_tags import lark_of_tags, quoted
from quire.engine.structured_outputs import StructuredOutputsParams


def grammar_of(wanted: StructuredOutputsParams, special_tokens: Mapping[str, int],
               added_tokens: Mapping[str, int] | None = None) -> str:
    """Raises ValueError where a structural tag is not understood, a grammar is of no kind or a form too costly, and any
    error where one is not understood."""
    if wanted.regex is not None:
        return LLMatcher.grammar_from_regex(with_plain_digits(wanted.regex))
    if wanted.choice is not None:
        texts = map(quoted, wanted.choice)
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
    if wanted.grammar is not None:
        if "start" not in wanted.grammar and "::=" not in wanted.grammar:
            raise ValueError("grammar has neither Lark's `start: ...` nor GBNF's `root ::= ...`")
        check_gbnf(wanted.grammar)
        return _of_lark(any_to_lark(wanted.grammar))
    if isinstance(wanted.structural_tag, dict):
        return _of_lark(lark_of_tags(wanted.structural_tag, special_tokens, added_tokens))
    schema: Any = {"type": "object"} if wanted.json_object else wanted.json
    if schema is False:
        raise ValueError("the schema false allows no value")
    check_schema(schema)
    if wanted.disable_additional_properties:
        schema = closed(schema)
    return json_grammar(schema, is_compact=wanted.disable_any_whitespace, white_space=wanted.whitespace_pattern)


def json_grammar(schema: Any, *, is_compact: bool = False, white_space: str | None = None) -> str:
    options: Any = json_options(is_compact=is_compact, white_space=white_space)
    return LLMatcher.grammar_from_json_schema(json.dumps({} if schema is True else schema), overrides=options)


def _of_lark(lark: str) -> str:
    check_lark(lark)
    return LLMatcher.grammar_from_lark(lark)
