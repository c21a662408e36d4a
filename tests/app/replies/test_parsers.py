"""However a reply's text is cut, its parser finds the same, in calls as many and as long."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quire.app.replies.parser import ReplyParser
from quire.app.replies.pieces import Arguments, Call, Content, Reasoning
from quire.app.replies.thinking import Thinking, ThinkTags
from quire.app.replies.tools.formats import FORMATS

THINK = ThinkTags("<think>", "</think>")
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
SCHEMAS: dict[str, Any] = {"weather": WEATHER, "now": {}}
NOW = '{"name": "now"}'
ARGUMENTS = '{"city": "Zür\\"ich} </tool_call>\\\\", "days": 3}'

# Of each format: its text, and what is said and called; a call's arguments as objects.
Sample = tuple[str, str, list[tuple[str, Any]]]
SAMPLES: dict[str, list[Sample]] = {
    "hermes": [
        ("Only text, with <tool and <tool_cal in it. ", "Only text, with <tool and <tool_cal in it. ", []),
        (f'I look.\n<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', "I look.",
         [("weather", json.loads(ARGUMENTS))]),
        (f'<tool_call>{{"arguments": {ARGUMENTS}, "name": "weather"}}</tool_call>\n<tool_call>{NOW}</tool_call>\n', "",
         [("weather", json.loads(ARGUMENTS)), ("now", {})]),
        ('<tool_call>\n{"name": "now", "arguments": null}\n<tool_call>\n{"name": "now", "arguments": "{}"}', "",
         [("now", {}), ("now", {})]),
        *((text, text, []) for text in ("<tool_call>\nno call\n</tool_call> and on",
                                        '<tool_call>\n{"nom": 1}\n</tool_call>')),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Ul', "", [("weather", '{"city": "Ul')]),
        ('Now: <tool_call>\n{"nam', 'Now: <tool_call>\n{"nam', []),
    ],
}


def parser(format: str, *, is_open: bool | None = None) -> ReplyParser:
    make = FORMATS[format]
    thinking = None if is_open is None else Thinking(THINK, is_open=is_open, ends=(make.trigger,))
    return ReplyParser(thinking, make.parser(SCHEMAS))


def told(parser: ReplyParser, pieces: list[str]) -> tuple[str, str, list[tuple[str, Any]]]:
    """Thought, said and called."""
    thought, said, calls = "", "", []
    for piece in [each for text in pieces for each in parser.push(text)] + parser.flush():
        match piece:
            case Content(text):
                assert text
                said += text
            case Reasoning(text):
                assert text
                thought += text
            case Call(index, id, name):
                assert index == len(calls) and id
                calls.append([name, ""])
            case Arguments(index, text):
                assert index == len(calls) - 1 and text
                calls[index][1] += text
    return thought, said, [(name, _object(text)) for name, text in calls]


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def cuts(text: str) -> list[list[str]]:
    """Whole, in two at each place, in single characters, and in threes."""
    return [[text], *([text[:i], text[i:]] for i in range(1, len(text))), list(text),
            [text[i:i + 3] for i in range(0, len(text), 3)]]


@pytest.mark.parametrize("format", FORMATS)
def test_cut_anywhere_a_text_gives_the_same_calls(format: str) -> None:
    for text, said, calls in SAMPLES[format]:
        for pieces in cuts(text):
            assert told(parser(format), pieces) == ("", said, calls), (text, pieces)


@pytest.mark.parametrize(("text", "is_open", "thought", "said"), [
    ("<think>\nWell.\n\nSo.\n</think>\n\nYes.\n", False, "Well.\n\nSo.", "Yes.\n"),
    ("\nWell.</think>Yes <think> no", True, "Well.", "Yes <think> no"),
    ("<think>Well", True, "Well", ""),
    ("<think>\n\n</think>\n\nYes", False, "", "Yes"),
    ("<thin ice", False, "", "<thin ice"),
    ("  <th", False, "", "  <th"),
    ("No tags, </think> no thought", False, "", "No tags, </think> no thought"),
])
def test_cut_anywhere_the_same_is_thought(text: str, is_open: bool, thought: str, said: str) -> None:
    for pieces in cuts(text):
        alone = ReplyParser(Thinking(THINK, is_open=is_open), None)
        assert told(alone, pieces) == (thought, said, []), pieces


def test_a_call_ends_the_thinking() -> None:
    text = '<think>Hm, <tool_call>{"name": "now"}</tool_call>'
    for pieces in cuts(text):
        assert told(parser("hermes", is_open=False), pieces) == ("Hm, ", "", [("now", {})])


@pytest.mark.parametrize("format", FORMATS)
def test_a_long_reply_takes_no_longer_than_many_short_ones(format: str) -> None:
    """One whose time grows with the square of the length would not be done before the suite's limit."""
    for text, _, _ in SAMPLES[format]:
        for part in ("Zür", "text", "ll", "no c"):
            if part in text:
                long = text.replace(part, part * 2**16, 1)
                told(parser(format), [long[i:i + 3] for i in range(0, len(long), 3)])
    spaces = [" "] * 2**17
    assert told(parser(format, is_open=True), [*spaces, "x", *spaces])[0].strip() == "x"
