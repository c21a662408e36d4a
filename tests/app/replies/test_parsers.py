"""However a reply's text is cut, its parser finds the same, in calls as many and as long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.app.replies.parser import ReplyParser
from quire.app.replies.pieces import Arguments, Call, Content, Reasoning
from quire.app.replies.thinking import THINK_TAGS, Thinking, ThinkTags, Where
from quire.app.replies.tools.formats import FORMATS
from tests.app.replies.samples import SAMPLES, SCHEMAS

THINK = THINK_TAGS["think"]


def parser(format: str, begins: Where | None = None) -> ReplyParser:
    make = FORMATS[format]
    ends = (make.trigger,) if make.trigger else ()
    return ReplyParser(None if begins is None else Thinking(THINK, begins, ends), make.parser(SCHEMAS))


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
    """Whole, in two at each place, and in groups of 1 to 7 characters."""
    return [[text], *([text[:i], text[i:]] for i in range(1, len(text))),
            *([text[i:i + size] for i in range(0, len(text), size)] for size in range(1, 8))]


@pytest.mark.parametrize("format", FORMATS)
def test_cut_anywhere_a_text_gives_the_same_calls(format: str) -> None:
    for text, said, calls in SAMPLES[format]:
        for pieces in cuts(text):
            assert told(parser(format), pieces) == ("", said, calls), (text, pieces)


@pytest.mark.parametrize("format", FORMATS)
def test_a_text_that_stops_anywhere_gives_the_beginnings_of_its_calls(format: str) -> None:
    for text, _, calls in SAMPLES[format]:
        for end in range(len(text)):
            _, _, found = told(parser(format), [text[:end]])
            assert end % 8 or told(parser(format), list(text[:end]))[2] == found
            assert [name for name, _ in found] == [name for name, _ in calls][:len(found)], text[:end]


@pytest.mark.parametrize("format", FORMATS)
def test_of_a_call_that_is_cut_off_behind_another_nothing_is_said(format: str) -> None:
    text = SAMPLES[format][0][0]
    for end in range(len(text)):
        _, said, calls = told(parser(format), [text[:end]])
        assert not (said and calls), text[:end]


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_however_marks_come_the_cut_changes_nothing(format: str, data: st.DataObject) -> None:
    """Rubbish made of the parts of real calls."""
    text = "".join(text for text, _, _ in SAMPLES[format])
    spans = data.draw(st.lists(st.tuples(st.integers(0, len(text) - 1), st.integers(1, 30)), max_size=12))
    rubbish = "".join(text[start:start + length] for start, length in spans)
    places = sorted(data.draw(st.lists(st.integers(0, len(rubbish)), max_size=6)))
    pieces = [rubbish[start:end] for start, end in zip([0, *places], [*places, len(rubbish)])]
    assert told(parser(format), pieces) == told(parser(format), list(rubbish))


@pytest.mark.parametrize(("text", "begins", "thought", "said"), [
    ("<think>\nWell.\n\nSo.\n</think>\n\nYes.\n", Where.BEFORE, "Well.\n\nSo.", "Yes.\n"),
    ("\nWell.</think>Yes <think> no", Where.INSIDE, "Well.", "Yes <think> no"),
    ("<think>Well", Where.BEFORE, "Well", ""),
    ("<think>\n\n</think>\n\nYes", Where.BEFORE, "", "Yes"),
    ("<thin ice", Where.BEFORE, "", "<thin ice"),
    ("  <th", Where.BEFORE, "", "  <th"),
    ("No tags, </think> no thought", Where.BEFORE, "", "No tags, </think> no thought"),
    ("Well.\n</think>\n</think>\n\nYes </think>", Where.INSIDE, "Well.", "Yes </think>"),
    ("Well.</think></thi", Where.INSIDE, "Well.", "</thi"),
    ("</think>\n\nYes", Where.AFTER, "", "Yes"),
    ("<think> is a tag", Where.AFTER, "", "<think> is a tag"),
])
def test_cut_anywhere_the_same_is_thought(text: str, begins: Where, thought: str, said: str) -> None:
    for pieces in cuts(text):
        alone = ReplyParser(Thinking(THINK, begins), None)
        assert told(alone, pieces) == (thought, said, []), pieces


@pytest.mark.parametrize("tags", THINK_TAGS.values())
def test_all_tags_part_thoughts_from_replies(tags: ThinkTags) -> None:
    for pieces in cuts(f"{tags.start}\nHm {tags.start[:-1]}.\n{tags.end}\n\nYes"):
        assert told(ReplyParser(Thinking(tags), None), pieces) == (f"Hm {tags.start[:-1]}.", "Yes", [])


@pytest.mark.parametrize(("prompt", "begins"), [
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", Where.BEFORE),
    ("<|im_start|>assistant\n<think>\n", Where.INSIDE),
    ("<|im_start|>assistant\n<think>\nFirst, I", Where.INSIDE),
    ("<|im_start|>assistant\n<think>\n\n</think>\n\n", Where.AFTER),
    ("<｜Assistant｜></think>", Where.AFTER),
    ("<|im_start|>assistant\n<think>\nSo.</think>\n\nThe", Where.BEFORE),
    ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", Where.BEFORE),
    ("<s>[INST] What is <think>? [/INST]", Where.BEFORE),
])
def test_the_prompt_tells_where_a_reply_begins(prompt: str, begins: Where) -> None:
    assert THINK.where(prompt) is begins


def test_a_call_ends_the_thinking() -> None:
    text = '<think>Hm, <tool_call>{"name": "now"}</tool_call>'
    for pieces in cuts(text):
        assert told(parser("hermes", Where.BEFORE), pieces) == ("Hm, ", "", [("now", {})])


def test_ids_are_what_templates_take() -> None:
    text = "[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b[CALL_ID]abcDEF123[ARGS]{}"
    ids = [piece.id for piece in parser("mistral").push(text) if isinstance(piece, Call)]
    assert ids[1] == "abcDEF123" and len(ids[0]) == 9 and ids[0].isalnum()
    text = SAMPLES["kimi_k2"][0][0] + SAMPLES["kimi_k2"][0][0].replace(":0", ":1")
    ids = [piece.id for piece in parser("kimi_k2").push(text) if isinstance(piece, Call)]
    assert ids == ["functions.weather:0", "functions.now:0", "functions.weather:1", "functions.now:1"]
    again = [piece.id for piece in parser("kimi_k2").push(text + text) if isinstance(piece, Call)]
    assert len(set(again)) == 8, "no id twice"


@pytest.mark.parametrize("format", FORMATS)
def test_a_long_reply_takes_no_longer_than_many_short_ones(format: str) -> None:
    """One whose time grows with the square of the length would not be done before the suite's limit."""
    text, _, _ = SAMPLES[format][0]
    garbage = [text.replace("no text", "no text" * 2**13) for text, _, _ in SAMPLES[format] if "no text" in text]
    for long in (text.replace("Zür", "Zür" * 10**5), text * (50_000 // len(text)), text[:20] * 2500, *garbage):
        told(parser(format), [long[i:i + 20] for i in range(0, len(long), 20)])
        told(parser(format), [long])


def test_white_space_is_linear_too() -> None:
    spaces = [" "] * 2**15
    assert told(parser("hermes", Where.INSIDE), [*spaces, "x", *spaces])[0].strip() == "x"
