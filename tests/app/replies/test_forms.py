"""What a grammar lets a model write, the parser of its format reads as calls that fit the schemas."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from quire.app.replies.style import ReplyStyle
from quire.app.replies.tools.formats import FORMATS, ToolFormat
from quire.app.schemas.tools import ToolChoice
from quire.engine.errors import InvalidRequestError
from quire.engine.grammar.check import GrammarCheck
from quire.engine.grammar.limits import LIMITS
from quire.engine.grammar.vocabulary import grammar_vocabulary
from quire.engine.structured_outputs import StructuredOutputsParams
from quire.engine.tokenizers.tokenizer import Tokenizer
from tests.app.replies.samples import SAMPLES, SCHEMAS
from tests.app.replies.test_parsers import told

HARD: dict[str, Any] = {
    "type": "object", "required": ["text", "count", "place"], "$defs": {"place": {
        "type": "object", "properties": {"x": {"type": "number"}, "inner": {"$ref": "#/$defs/place"}},
        "required": ["x"], "additionalProperties": False}},
    "properties": {
        "kind": {"enum": ["a", "b c", 3, None]}, "text": {"type": "string"}, "count": {"type": "integer"},
        "short": {"type": "string", "minLength": 2, "maxLength": 5},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-\\d$"},
        "maybe": {"type": ["string", "null"]}, "either": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
        "yes": {"type": "boolean"}, "place": {"$ref": "#/$defs/place"},
        "list": {"type": "array", "items": {"type": "string"}},
        "word": {"const": "so"}, "name": {"type": "string", "enum": ["Ä", "ö</b>"]}}}
LOOSE: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "null"}}}
TOOLS = {"hard": HARD, "loose": LOOSE, "none": {}}
END = "<end>"


class Walker:
    """Follows grammars over a small vocabulary, in which `special` are tokens."""

    def __init__(self, special: list[str], added: tuple[str, ...] = ()) -> None:
        rust = RustTokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rust.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                      show_progress=False)
        rust.train_from_iterator([text for samples in SAMPLES.values() for text, _, _ in samples], trainer)
        rust.add_special_tokens([AddedToken(text, special=True) for text in (END, *special)])
        rust.add_tokens([AddedToken(text, special=False) for text in added])
        self.tokenizer = Tokenizer(rust, special_tokens={"eos_token": END})
        size, end = self.tokenizer.vocab_size, self.tokenizer.eos_token_id
        assert end is not None
        self._end = end
        self.check = GrammarCheck(self.tokenizer, size, [end])
        self._vocabulary = grammar_vocabulary(self.tokenizer, size, [end])

    def matcher(self, form: StructuredOutputsParams) -> LLMatcher:
        return LLMatcher(self._vocabulary, self.check.grammar(form), limits=LIMITS, log_level=0)

    def accepts(self, form: StructuredOutputsParams, text: str) -> bool:
        matcher, ids = self.matcher(form), self.tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())

    def write(self, form: StructuredOutputsParams, chance: random.Random, closing: tuple[str, ...] = (),
              most: int = 600) -> list[int]:
        """By chance, but one of `closing` where it fits and chance agrees: texts must end."""
        matcher, ids = self.matcher(form), list[int]()
        ends = [self.tokenizer.encode(text, add_special_tokens=False) for text in closing]
        while not matcher.is_stopped():
            assert len(ids) < most, self.text(ids)
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            assert not matcher.is_error(), matcher.get_error()
            fits = [end for end in ends if matcher.validate_tokens(end) == len(end)]
            if bits[self._end] and (len(ids) > most // 2 or chance.random() < 0.3):
                chosen = [self._end]
            elif fits and (len(ids) > most // 3 or chance.random() < 0.4):
                chosen = chance.choice(fits)
            else:
                chosen = [int(chance.choice(np.flatnonzero(bits)))]
            assert matcher.consume_tokens(chosen)
            ids += chosen
        return ids

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode([token for token in ids if token != self._end], skip_special_tokens=False)


@pytest.fixture(scope="module", params=["marks are tokens", "marks are text"])
def walker(request: pytest.FixtureRequest) -> Iterator[Walker]:
    marks = sorted({text for format in FORMATS.values() for text in format.shown if text})
    return Walker(marks if request.param == "marks are tokens" else [])


def choice(tools: dict[str, Any], **wish: Any) -> ToolChoice:
    return ToolChoice([{"function": {"name": name, "parameters": schema, "strict": True}}
                       for name, schema in tools.items()], **wish)


def form(format: ToolFormat, tools: dict[str, Any], **wish: Any) -> StructuredOutputsParams:
    wanted = ReplyStyle(format, True, False, None).wanted_form(choice(tools, **wish), None, "")
    assert wanted is not None
    return wanted


def closing(format: ToolFormat) -> tuple[str, ...]:
    """The ends of strings, objects and calls. Not those that end a text in Qwen's XML, whatever a grammar says."""
    end = format.tag("none", {})["end"]
    ends = [text for text in (end, format.closing) if text and not text.startswith("</function>")]
    return ('"', "}", "]", ")", "null", *ends, "</parameter>", "\n</parameter>", "</arg_value>", "</｜DSML｜parameter>",
            '<|"|>', "<escape>")


@pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))
def test_what_the_parser_reads_may_be_written(format: ToolFormat, walker: Walker) -> None:
    text = SAMPLES[format.name][0][0].replace("ich} </tool_call>", "ich} </b>")  # no token of its own
    assert walker.accepts(form(format, SCHEMAS, must_call=True), text)
    assert walker.accepts(form(format, SCHEMAS), text), "where it may call, too"
    assert walker.accepts(form(format, SCHEMAS, several=False), "Only text.")
    assert not walker.accepts(form(format, SCHEMAS, must_call=True), "Only text.")
    assert not walker.accepts(form(format, {"now": SCHEMAS["now"]}, must_call=True), text)


@pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))
def test_what_may_be_written_is_read_as_calls_that_fit(format: ToolFormat, walker: Walker) -> None:
    chance = random.Random(format.name)
    for i in range(6):
        wanted = form(format, TOOLS, must_call=True, several=bool(i % 2))
        text = walker.text(walker.write(wanted, chance, closing(format)))
        parser = ReplyStyle(format, True, False, None).parser(choice(TOOLS), "")
        assert parser is not None
        thought, said, calls = told(parser, [text])
        assert (thought, said) == ("", ""), text
        assert calls and (i % 2 or len(calls) == 1), text
        for name, arguments in calls:
            jsonschema.validate(arguments, {**TOOLS[name], "additionalProperties": False})


KEYWORDS = st.sampled_from(["type", "properties", "required", "enum", "const", "anyOf", "allOf", "items", "minLength",
                            "maxLength", "pattern", "minItems", "$ref", "$defs", "additionalProperties"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 5) | st.sampled_from(
        ["string", "object", "array", "#/$defs/city", "#", "(", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        KEYWORDS | st.sampled_from(["city", "a:>\n"]), inner, max_size=4))
BROKEN = st.dictionaries(KEYWORDS, VALUES, max_size=5)


@given(schema=BROKEN | st.dictionaries(st.just("properties"), st.dictionaries(st.just("city"), BROKEN, min_size=1)))
@settings(max_examples=100, deadline=None)
def test_no_schema_breaks_a_parser_or_a_form(schema: dict[str, Any]) -> None:
    """What is no JSON schema reaches them too: a tool may be called without a grammar."""
    tools = ToolChoice([{"function": {"name": "weather", "parameters": schema}}], must_call=True)
    for name in ("qwen3_coder", "glm45", "deepseek_v32", "gemma4", "pythonic"):
        style = ReplyStyle(FORMATS[name], True, False, None)
        for text, _, calls in SAMPLES[name][:2]:
            parser = style.parser(tools, "")
            assert parser is not None
            assert [name for name, _ in told(parser, [text])[2]] == [name for name, _ in calls]
        with suppress(InvalidRequestError):
            style.wanted_form(tools, None, "")
