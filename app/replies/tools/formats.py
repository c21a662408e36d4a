"""THE list of the ways in which models write calls. A new one is a file beside this one, and a line here.

Which one a model writes is seen in its chat template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from quire.app.replies.tools import (
    deepseek,
    gemma,
    glm,
    hermes,
    invoke_xml,
    kimi,
    llama3,
    mistral,
    pythonic,
    qwen_xml,
)
from quire.app.replies.tools.json_list import JsonListParser
from quire.app.replies.tools.parser import Form, Schemas, ToolParser
from quire.app.replies.tools.tagged_json import TaggedJsonParser


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """`tag` is the form of a call of one tool, {"begin", "content", "end"}. With several, `separator` is between them,
    and all are within `opening` and `closing`. Calls begin with `trigger`, which starts nothing else; without one, only
    a reply that begins with calls calls, and no other reply begins with the first character of calls."""

    name: str
    in_template: str  # a regular expression: where it is found, a template is for this form
    parser: Callable[[Schemas], ToolParser]
    trigger: str
    tag: Callable[[str, Mapping[str, Any]], Form]
    separator: str = "\n"
    opening: str = ""
    closing: str = ""
    shown: tuple[str, ...] = ()  # special tokens that the parser must see


def _json_tag(begin: str, end: str, field: str = "arguments") -> Callable[[str, Mapping[str, Any]], Form]:
    """Of a call that is a JSON object."""
    def tag(name: str, schema: Mapping[str, Any]) -> Form:
        return {"begin": f'{begin}{{"name": "{name}", "{field}": ', "end": f"}}{end}",
                "content": {"type": "json_schema", "json_schema": dict(schema)}}
    return tag


def _list(name: str, in_template: str, mark: str, *marks: str, end: str = "", trigger: str = "") -> ToolFormat:
    """A mark and a JSON list; others of the `marks` are read, too. `trigger`: where the mark may be a word of text."""
    return ToolFormat(name, in_template, lambda schemas: JsonListParser(schemas, mark, *marks, end=end),
                      trigger or mark, _json_tag("", ""), ", ", f"{mark}[", f"]{end}", (mark, *marks, end))


def _tagged(name: str, in_template: str, begin: str, end: str, *, field: str = "arguments", gap: str = "",
            shown: tuple[str, ...] = ()) -> ToolFormat:
    return ToolFormat(name, in_template, partial(TaggedJsonParser, begin=begin, end=end), begin,
                      _json_tag(f"{begin}{gap}", f"{gap}{end}", field), shown=shown or (begin, end))


def _qwen(name: str, in_template: str, parser: type[qwen_xml.QwenXmlParser]) -> ToolFormat:
    return ToolFormat(name, in_template, parser, parser.marks[0], partial(qwen_xml.tag, parser.marks),
                      shown=parser.marks)


def _invoke(name: str, in_template: str, tags: invoke_xml.Tags, *shown: str) -> ToolFormat:
    opening, closing = tags.opening[0], tags.closing[0]
    return ToolFormat(name, in_template, partial(invoke_xml.InvokeParser, tags=tags), opening, invoke_xml.form(tags),
                      "", f"{opening}\n", closing, (*shown, *tags.opening, *tags.closing))


def _deepseek(name: str, in_template: str, tag: Callable[[str, Mapping[str, Any]], Form], separator: str) -> ToolFormat:
    return ToolFormat(name, in_template, deepseek.DeepSeekParser, deepseek.SECTION, tag, separator, deepseek.SECTION,
                      deepseek.SECTION_END, deepseek.SHOWN)


def _pythonic(name: str, in_template: str, parser: type[pythonic.PythonicParser], *, mark: bool = False,
              brackets: str = "[]", separator: str = ", ") -> ToolFormat:
    """`mark`: whether the parser's own is around calls that must be."""
    begin, end = parser.marks if mark else ("", "")
    return ToolFormat(name, in_template, parser, begin, pythonic.tag, separator, begin + brackets[:1],
                      brackets[1:] + end, parser.marks)


def _gemma(name: str, in_template: str, marks: gemma.Marks) -> ToolFormat:
    return ToolFormat(name, in_template, partial(gemma.GemmaParser, marks=marks), marks.begin, gemma.tag(marks), "",
                      shown=marks.all)


# In the order in which templates are searched: a marker of one may be part of another's.
_ALL = (
    _invoke("deepseek_v32", "DSML", invoke_xml.DEEPSEEK, "｜DSML｜"),
    _invoke("minimax_m2", "<minimax:tool_call>", invoke_xml.MINIMAX),
    ToolFormat("kimi_k2", "tool_calls_section_begin", kimi.KimiParser, kimi.SECTION, kimi.tag, "", kimi.SECTION,
               kimi.SECTION_END, kimi.SHOWN),
    _deepseek("deepseek_v3", r"(?s)tool▁sep.*```json", deepseek.tag_v3, "\n"),
    _deepseek("deepseek_v31", "tool▁sep", deepseek.tag_v31, ""),
    ToolFormat("glm47", "</arg_key><arg_value>", glm.GlmParser, hermes.BEGIN, partial(glm.tag, ""), "",
               shown=glm.SHOWN),
    ToolFormat("glm45", "<arg_key>", glm.GlmParser, hermes.BEGIN, partial(glm.tag, "\n"), shown=glm.SHOWN),
    _gemma("gemma4", r"<\|tool_call>", gemma.GEMMA4),
    _gemma("functiongemma", "<start_function_call>", gemma.FUNCTION_GEMMA),
    _qwen("seed_oss", "<seed:tool_call>", qwen_xml.SeedParser),
    _qwen("qwen3_coder", r"(?s)<function=.*<parameter=", qwen_xml.QwenXmlParser),
    ToolFormat("mistral_v11", r"(?s)\[TOOL_CALLS\].*\[ARGS\]", mistral.MistralParser, mistral.CALLS, mistral.tag, "",
               shown=mistral.SHOWN),
    ToolFormat("mistral", r"\[TOOL_CALLS\]", mistral.MistralParser, mistral.CALLS, _json_tag("", ""), ", ",
               f"{mistral.CALLS}[", "]", mistral.SHOWN),
    _pythonic("lfm2", r"<\|tool_call_start\|>", pythonic.Lfm2Parser, mark=True),
    _pythonic("olmo3", "<function_calls>", pythonic.Olmo3Parser, mark=True, brackets="", separator="\n"),
    _pythonic("llama4_pythonic", r"<\|python_start\|>", pythonic.PythonicParser, mark=True),
    ToolFormat("llama3_json", r"<\|python_tag\|>|ipython<\|end_header_id\|>", llama3.Llama3Parser, "",
               _json_tag("", "", "parameters"), "; ", shown=(llama3.TAG,)),
    _list("phi4_mini_json", r"functools\[|<\|tool\|>", "functools", "<|tool_call|>", trigger="functools["),
    _list("granite", r"<\|tool_call\|>|available_tools<\|end_of_role\|>", "<|tool_call|>", "<tool_call>"),
    _list("granite31", r"<tool_call>\[", "<tool_call>", "<|tool_call|>"),
    _tagged("internlm", r"<\|plugin\|>", "<|action_start|><|plugin|>", "<|action_end|>", field="parameters",
            shown=("<|action_start|>", "<|plugin|>", "<|action_end|>")),
    _list("jamba", "<tool_calls>", "<tool_calls>", end="</tool_calls>"),
    _tagged("granite-20b-fc", "<function_call>", "<function_call>", ""),
    _pythonic("pythonic", r"\[func(?:tion)?_?name\d*\(", pythonic.PythonicParser),
    _tagged("hermes", "<tool_call>", hermes.BEGIN, hermes.END, gap="\n"),
)
FORMATS = {one.name: one for one in _ALL}
GENERIC = "hermes"  # for models whose template knows no tools: `generic_tools` tells them how to call
# vLLM's other names. Where a name stands for several, the template tells which; the last one, if it does not.
_OTHERS = {
    "deepseek_v4": ("deepseek_v32",), "granite": ("granite31", "granite"), "granite4": ("hermes",),
    "hunyuan_a13b": ("jamba",), "mistral": ("mistral_v11", "mistral"), "nemotron3": ("qwen3_coder",),
    "qwen3_xml": ("qwen3_coder",), "step3p5": ("qwen3_coder",), "toolace": ("pythonic",),
}
NAMES = (*FORMATS, *(name for name in _OTHERS if name not in FORMATS))


def format_of(template: str) -> ToolFormat | None:
    """The one that a template's source is for."""
    return next((one for one in _ALL if re.search(one.in_template, template)), None)


def named(name: str, template: str) -> ToolFormat:
    """The one that --tool-call-parser names, for a model with this template."""
    meant = [FORMATS[one] for one in _OTHERS.get(name, (name,))]
    return next((one for one in meant if re.search(one.in_template, template)), meant[-1])
