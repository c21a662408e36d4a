"""Replies as models write them in each format, and what is said and called in them. The first of each format is what a
grammar lets a model write, too.
"""

from __future__ import annotations

import json
from typing import Any

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                                            "tags": {"type": "array"}}}
NOW: dict[str, Any] = {"type": "object", "properties": {}}
SCHEMAS: dict[str, Any] = {"weather": WEATHER, "now": NOW}
# A text that looks like the ends of things.
CITY = 'Zür"ich} </tool_call>\\'
ARGUMENTS = {"city": CITY, "days": 3}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
CALL = f'{{"name": "weather", "arguments": {JSON}}}'
LIST = f'[{CALL}, {{"name": "now", "arguments": {{}}}}]'
BOTH = [("weather", ARGUMENTS), ("now", {})]
ONE = [("weather", ARGUMENTS)]
PLAIN = {"city": 'Zür"ich} </b>\\', "days": 3}  # where a mark would end the value
CODE = {"city": "def f():\n\n    return '</b>'\n", "days": -3}

Sample = tuple[str, str, list[tuple[str, Any]]]


def _listed(mark: str, end: str = "") -> list[Sample]:
    return [
        (f"{mark}{LIST}{end}", "", BOTH),
        (f"I look.\n{mark} {LIST}{end} And {mark[:-2]}", f"I look. And {mark[:-2]}", BOTH),
        (f"{mark}{mark}{CALL}", "", ONE),
        (f'{mark}[{{"name": "other", "parameters": {{"a": [1]}}}}, oops', ", oops", [("other", {"a": [1]})]),
        *((text, text, []) for text in (f"{mark}[]", f"{mark} no text", f'{mark}[{{"nom": 1}}]')),
        (f'{mark}[{{"name": "weather", "arguments": {{"city": "Ul', "", [("weather", '{"city": "Ul')]),
    ]


def _section(begin: str, call: str, head: str, end: str, stop: str, *, between: str = "") -> list[Sample]:
    """`head` with NAME; `end` behind the JSON, `stop` behind all."""
    def one(name: str, arguments: str) -> str:
        return f"{call}{head.replace('NAME', name)}{arguments}{end}"

    both = f"{begin}{one('weather', JSON)}{between}{one('now', '{}')}{stop}"
    return [
        (both, "", BOTH),
        (f"I look.\n{both} text", "I look. text", BOTH),
        (f"{begin}{begin}{call}{one('other', JSON)}", "", [("other", ARGUMENTS)]),
        (f"{one('weather', JSON)} text", " text", ONE),
        (f"{begin}{one('weather', JSON)}\n{stop[:-1]}", "", ONE),  # cut off
        (f"{begin}{one('weather', JSON)}{call}no text", f"{call}no text", ONE),
        *((text, text, []) for text in (f"{begin}no text", f"{begin}{call}text", begin[:-1])),
        (f"{begin}{call}{head.replace('NAME', 'weather')}{{\"city\": \"Ul", "", [("weather", '{"city": "Ul')]),
    ]


def _qwen(begin: str, end: str) -> list[Sample]:
    def one(city: str, days: str = "3") -> str:
        return (f"<function=weather>\n<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n{days}\n</parameter>\n"
                "</function>")

    now = f"{begin}\n<function=now>\n</function>\n{end}"
    other = "<parameter=a>[1, 2]</parameter><parameter=b>True</parameter><parameter=c>\n  x\n</parameter>"
    both = f"{begin}\n{one(PLAIN['city'])}\n{end}\n{now}"
    return [
        (both, "", [("weather", PLAIN), ("now", {})]),
        (f"Hm <function>, \n{begin}{one(CODE['city'], '-3')}{end} text", "Hm <function>, text", [("weather", CODE)]),
        (f"{begin}{begin}\n{one('</tool>', 'soon')}", "", [("weather", {"city": "</tool>", "days": "soon"})]),
        (f'{begin}\n<function=weather>\n<parameter=tags>\n["</parameter>", "\\n"]\n</parameter>\n</function>\n{end}',
         "", [("weather", {"tags": ["</parameter>", "\n"]})]),
        (f'{begin}\n<function=other>\n<parameter=a>\n{{"\n</parameter>\n</function>\n{end}', "",
         [("other", {"a": '{"'})]),
        # Left out: outer tags; the ends of parameters; the end of the call.
        (f"{one('Ulm')} text", " text", [("weather", {"city": "Ulm", "days": 3})]),
        (f"{begin}\n<function=weather>\n<parameter=city>\n<parameter=x>\n<parameter=days>\n2\n</function>\n{end}", "",
         [("weather", {"city": "<parameter=x>", "days": 2})]),
        (f"{begin}\n<function=weather>\n<parameter=days>\n2\n</parameter>\n", "", [("weather", {"days": 2})]),
        (f"{begin}<function=other>{other}</function>{end}{now}", "",
         [("other", {"a": [1, 2], "b": True, "c": "  x"}), ("now", {})]),
        (f'{begin}\n<function=weather>\n<parameter=tags>\n["</parameter>", }}"]\n</parameter>\n</function>\n{end} text',
         " text", [("weather", {"tags": '["</parameter>", }"]'})]),
        (f"{begin}\n<function=other>\n<parameter=zip>\n0123\n</parameter>\n</function>\n{end}", "",
         [("other", {"zip": "0123"})]),
        *((text, text, []) for text in (f"{begin}\nno text {end}", "<function=no text", f"{begin}<function=>x",
                                        "Write `<function=name>` here.")),
        (f"{begin}\n<function=weather>\n<parameter=city>\nUl", "", [("weather", '{"city": "Ul')]),
    ]


def _glm(gap: str) -> list[Sample]:
    def one(city: str) -> str:
        return (f"<tool_call>weather{gap}<arg_key>city</arg_key>{gap}<arg_value>{city}</arg_value>{gap}"
                f"<arg_key>days</arg_key>{gap}<arg_value>3</arg_value>{gap}</tool_call>")

    now = f"<tool_call>now{gap}</tool_call>"
    return [
        (f"{one(CITY)}{gap}{now}", "", BOTH),
        (f"Hm <tool_cal, \n{one('Ulm')} text", "Hm <tool_cal, text", [("weather", {"city": "Ulm", "days": 3})]),
        (f"<tool_call>\n<tool_call>other{gap}<arg_key>a</arg_key><arg_value>null</arg_value>{now}", "",
         [("other", {"a": None}), ("now", {})]),
        ("<tool_call>weather\n<arg_key>days</arg_key><arg_key>city</arg_key><arg_value>\nA\n</arg_value></tool_call>",
         "", [("weather", {"city": "\nA\n"})]),
        *((text, text, []) for text in ("<tool_call>no text</tool_call>", "<tool_call></tool_call>", "<tool_call>")),
        ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ul", "", [("weather", '{"city": "Ul')]),
    ]


def _invoke(mark: str, outer: str, *, tells: bool, others: tuple[str, ...] = ()) -> list[Sample]:
    def parameter(key: str, value: str, is_text: bool) -> str:
        kind = f' string="{str(is_text).lower()}"' if tells else ""
        return f'<{mark}parameter name="{key}"{kind}>{value}</{mark}parameter>\n'

    def one(city: str, end: str = f"</{mark}invoke>") -> str:
        return (f'<{mark}invoke name="weather">\n{parameter("city", city, True)}{parameter("days", "3", False)}{end}')

    now = f'<{mark}invoke name="now">\n</{mark}invoke>'
    begin, stop = f"<{outer}>", f"</{outer}>"
    return [
        (f"{begin}\n{one(CITY)}\n{now}\n{stop}", "", BOTH),
        (f"Hm <too, \n{begin}{one('3')}{stop} text", "Hm <too, text", [("weather", {"city": "3", "days": 3})]),
        (f"{begin}\n{begin}\n{one('Ulm', '')}{now}", "", [("weather", {"city": "Ulm", "days": 3}), ("now", {})]),
        *((f"<{other}>\n{now}\n</{other}>", "", [("now", {})]) for other in others),
        *((text, text, []) for text in (f"{begin}no text{stop}", f"{begin}{stop}",
                                        f'{begin}<{mark}invoke name="no text')),
        (f'{begin}\n<{mark}invoke name="weather">\n<{mark}parameter name="city">Ul', "", [("weather", '{"city": "Ul')]),
    ]


def _pythonic(begin: str, end: str, between: str = ", ") -> list[Sample]:
    city = json.dumps(CITY, ensure_ascii=False)
    return [
        (f"{begin}weather(city={city}, days=3){between}now(){end}", "", BOTH),
        (f"{begin}weather( city = 'Zür\"ich}} </tool_call>\\\\' , days=3 ,){between}now( ){end} text", " text", BOTH),
        (f"{begin}other.f(a=[1, (2.5, -1e3),], b={{'x': None, \"y\": true}}, c='''it's \\\n\"1''', d=f(x), e=''){end}",
         "",
         [("other.f", {"a": [1, [2.5, -1e3]], "b": {"x": None, "y": True}, "c": 'it\'s "1', "d": "f(x)", "e": ""})]),
        *((text, text, []) for text in (f"{begin}link](text)", f"{begin}weather('Ulm'){end}", f"{begin}1, 2{end}",
                                        f"{begin}weather(", f"Hm {begin[1:]}")),
        (f"{begin}weather(days=1+2, city='a' 'b'){end}", "", [("weather", {"days": "1+2", "city": "'a' 'b'"})]),
        (f"{begin}weather(days=3, city='Ul", "", [("weather", '{"days": 3')]),
    ]


def _gemma(begin: str, end: str, mark: str) -> list[Sample]:
    one = f"{begin}call:weather{{city:{mark}{CITY}{mark},days:3}}{end}"
    return [
        (f"{one}{begin}call:now{{}}{end}", "", BOTH),
        (f"Hm {begin[:-1]} \n{begin}{begin}{one} text", f"Hm {begin[:-1]} text", ONE),
        (f'{begin}call:other{{a:[1,{mark}x,{mark},{{"b":null , c : true,}}], d:{{}}, e:some text}}{end}', "",
         [("other", {"a": [1, "x,", {"b": None, "c": True}], "d": {}, "e": "some text"})]),
        (f"{begin}call:other{{a:12:30,b:,c:}}{end}", "", [("other", {"a": "12:30", "b": "", "c": ""})]),
        *((text, text, []) for text in (f"{begin}no text{end}", f"{begin}call:{{}}{end}", f"{begin}call:text")),
        (f"{begin}call:weather{{city:{mark}Ul", "", [("weather", '{"city": "Ul')]),
    ]


_LLAMA = f'{{"name": "weather", "parameters": {JSON}}}'

SAMPLES: dict[str, list[Sample]] = {
    "hermes": [
        (f'<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>', "",
         BOTH),
        ("Only text, with <tool and <tool_cal in it. ", "Only text, with <tool and <tool_cal in it. ", []),
        (f"I look.\n<tool_call>\n{CALL}\n</tool_call>", "I look.", ONE),
        (f'<tool_call>{{"arguments": {JSON}, "name": "weather"}}</tool_call><tool_call>{{"name": "now"}}</tool_call>\n',
         "", BOTH),
        ('<tool_call>\n{"name": "now", "arguments": null}\n<tool_call>\n{"name": "other", "arguments": "{}"}', "",
         [("now", {}), ("other", {})]),
        (f"<tool_call>\n<tool_call>{CALL}</tool_call>", "", ONE),
        *((f"<tool_call>{text}</tool_call>", "", BOTH) for text in (
            LIST, f'```json\n{CALL}\n{{"name": "now"}}\n```', f'{CALL}{{"name": "now"}} oops {{"a": 1}}')),
        (f'<tool_call>{{"name": "weather", "name": "other", "arguments": {JSON}, "input": {{}}}}</tool_call>', "", ONE),
        *((text, text, []) for text in ("<tool_call>\nno call\n</tool_call> and on",
                                        '<tool_call>\n{"nom": 1}\n</tool_call>')),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Ul', "", [("weather", '{"city": "Ul')]),
        ('Now: <tool_call>\n{"nam', 'Now: <tool_call>\n{"nam', []),
    ],
    "internlm": [
        (f"<|action_start|><|plugin|>{_LLAMA}<|action_end|>", "", ONE),
        (f"I look.<|action_start|><|plugin|>\n{CALL}<|action_end|>\ntext", "I look.\ntext", ONE),
        ("<|action_start|><|plug text", "<|action_start|><|plug text", []),
    ],
    "granite-20b-fc": [
        (f'<function_call>{CALL}\n<function_call>{{"name": "now", "arguments": {{}}}}', "", BOTH),
        (f"Hm <function_call> {CALL} text", "Hm text", ONE),
        ("<function_call> no text", "<function_call> no text", []),
    ],
    "llama3_json": [
        (f'{_LLAMA}; {{"name": "now", "parameters": {{}}}}', "", BOTH),
        (f" <|python_tag|>{_LLAMA};{_LLAMA}; ", "", ONE * 2),
        (f"{_LLAMA}\n{_LLAMA}, {_LLAMA}", "", ONE * 3),
        (f"Text.\n<|python_tag|><|python_tag|> {CALL} text", "Text. text", ONE),
        ('{"name": "now"}', "", [("now", {})]),
        ('{"name": "other", "parameters": {}}, text', ", text", [("other", {})]),
        *((text, text, []) for text in ('{"name": "Ulm", "people": 1}', f"Text {_LLAMA}", "<|python_tag|>f(text)",
                                        "{text", "<|python", " ")),
        (f"{_LLAMA}; text", "; text", ONE),
        ('{"name": "weather", "parameters": {"city": "Ul', "", [("weather", '{"city": "Ul')]),
    ],
    "mistral": [
        *_listed("[TOOL_CALLS]"),
        (f"[TOOL_CALLS]weather{JSON}[TOOL_CALLS]now[ARGS]{{}}", "", BOTH),
    ],
    "mistral_v11": [
        (f"[TOOL_CALLS]weather[ARGS]{JSON}[TOOL_CALLS]now[ARGS]{{}}", "", BOTH),
        (f"Hm.\n[TOOL_CALLS]weather[CALL_ID]abcDEF123[ARGS]{JSON}", "Hm.", ONE),
        (f"[TOOL_CALLS][TOOL_CALLS] weather {JSON} text", " text", ONE),
        (f"[TOOL_CALLS]{LIST}", "", BOTH),
        *((text, text, []) for text in ("[TOOL_CALLS]no text", "[TOOL_CALLS]weather[ARGS]", "[TOOL_CAL text")),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Ul', "", [("weather", '{"city": "Ul')]),
    ],
    "granite": _listed("<|tool_call|>"),
    "granite31": _listed("<tool_call>"),
    "phi4_mini_json": _listed("functools"),
    "jamba": _listed("<tool_calls>", "</tool_calls>"),
    "deepseek_v3": [
        *_section("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>NAME\n```json\n",
                  "\n```<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", between="\n"),
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n```<｜tool▁call▁end｜>", "", [("now", {})]),
    ],
    "deepseek_v31": [
        *_section("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
                  "<｜tool▁calls▁end｜>"),
        ("<｜tool▁call▁begin｜>now<｜tool▁sep｜><｜tool▁call▁end｜>", "", [("now", {})]),
    ],
    "kimi_k2": [
        *_section("<|tool_calls_section_begin|>", "<|tool_call_begin|>",
                  "functions.NAME:0<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        ("<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|><|tool_call_end|>", "", [("now", {})]),
    ],
    "qwen3_coder": _qwen("<tool_call>", "</tool_call>"),
    "seed_oss": _qwen("<seed:tool_call>", "</seed:tool_call>"),
    "gemma4": _gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "glm45": _glm("\n"),
    "glm47": _glm(""),
    "deepseek_v32": _invoke("｜DSML｜", "｜DSML｜function_calls", tells=True,
                            others=("｜DSML｜tool_calls", "｜DSML｜toolcalls", "｜DSML｜tool")),
    "minimax_m2": _invoke("", "minimax:tool_call", tells=False),
    "pythonic": [
        *_pythonic("[", "]"),
        *((text, text, []) for text in ("Text [now()]", "[[now()]]")),
        ("<|python_start|>[now()]<|python_end|> text", " text", [("now", {})]),
    ],
    "llama4_pythonic": [
        *_pythonic("<|python_start|>[", "]<|python_end|>"),
        ("[now()] text", " text", [("now", {})]),
        ("Text.<|python_start|><|python_start|>[now()]", "Text.", [("now", {})]),
    ],
    "lfm2": [
        *_pythonic("<|tool_call_start|>[", "]<|tool_call_end|>"),
        ("[now()]", "[now()]", []),
    ],
    "olmo3": [
        *_pythonic("<function_calls>", "</function_calls>", "\n"),
        ("<function_calls>[now()]</function_calls>", "", [("now", {})]),
    ],
}
