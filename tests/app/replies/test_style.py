"""Which format and tags a model has, as its chat template tells, and the form of a reply whose thinking is bounded."""

from __future__ import annotations

import random
from typing import Any

import pytest

from quire.app.replies.style import ReplyStyle
from quire.app.replies.thinking import REASONING_PARSERS, THINK_TAGS
from quire.app.replies.tools.formats import FORMATS, NAMES, named
from quire.app.schemas.tools import ToolChoice
from quire.engine.errors import InvalidRequestError
from quire.engine.structured_outputs import StructuredOutputsParams
from tests.app.replies.samples import SCHEMAS
from tests.app.replies.test_forms import Walker, choice

# Small ones with the marks of each family's, in an order that misleads who takes the first.
TEMPLATES = {
    "hermes": "{{ tools }} in <tools></tools>; return <tool_call>{...}</tool_call>",
    "qwen3_coder": "{{ tools }} <tool_call>\n<function=example>\n<parameter=a>1</parameter></function></tool_call>",
    "gemma4": "<|tool>{{ tools }}<tool|> <|turn>model\n<|tool_call>call:{{ name }}{{ arguments }}<tool_call|>",
    "functiongemma": "{{ tools }} <start_function_call>call:{{ name }}{}<end_function_call>",
    "glm45": "{{ tools }} <tool_call>{name}\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n</tool_call><think>",
    "glm47": "{{ tools }} <tool_call>{name}<arg_key>{k}</arg_key><arg_value>{v}</arg_value></tool_call>",
    "mistral": "[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS][TOOL_CALLS][{{ calls }}]</s>[TOOL_RESULTS]",
    "mistral_v11": "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]{{ name }}[CALL_ID]{{ id }}[ARGS]{{ arguments }}</s>",
    "llama3_json": "{{ tools }} <|start_header_id|>ipython<|end_header_id|> <|python_tag|>",
    "llama4_pythonic": "<|header_start|>ipython<|header_end|> {{ tools }} <|python_start|>[f(a=1)]<|python_end|>",
    "pythonic": "{{ tools }} in the format of [func_name1(params_name1=params_value1, ...), func_name2(params)]",
    "deepseek_v3": "{{ tools }}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ n }}\n```json\n",
    "deepseek_v31": "{{ tools }} ```json <｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>{{ arguments }}",
    "deepseek_v32": "{{ tools }} <｜DSML｜function_calls><｜DSML｜invoke name=\"f\">",
    "granite": "<|start_of_role|>available_tools<|end_of_role|>{{ tools }} respond with <|tool_call|> and a list",
    "granite31": "{{ tools }} <tool_call>[{\"name\": ...}]",
    "phi4_mini_json": "{{ message['content'] }}<|tool|>{{ message['tools'] }}<|/tool|>",
    "internlm": "{{ tools }} <|action_start|><|plugin|>{}<|action_end|>",
    "kimi_k2": "{{ tools }} <|tool_calls_section_begin|><|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>{}",
    "minimax_m2": "{{ tools }} <minimax:tool_call>\n<invoke name=\"f\"><parameter name=\"a\">",
    "seed_oss": "{{ tools }} <seed:tool_call>\n<function=f>\n<parameter=a>1</parameter>",
    "lfm2": "{{ tools }} <|tool_list_start|> <|tool_call_start|>[f(a=1)]<|tool_call_end|>",
    "olmo3": "{{ tools }} <functions> <function_calls>f(a=1)</function_calls>",
    "jamba": "{{ tools }} <tool_calls>[{}]</tool_calls>",
    "granite-20b-fc": "{{ tools }} <function_call> {}",
}


def test_the_template_tells_the_format() -> None:
    assert TEMPLATES.keys() == FORMATS.keys()
    for name, template in TEMPLATES.items():
        assert ReplyStyle.of(template).format.name == name
    assert ReplyStyle.of("{{ messages }}").format.name == "hermes"


def test_vllms_names_are_taken() -> None:
    for name in ("hermes", "qwen3_coder", "qwen3_xml", "llama3_json", "llama4_pythonic", "pythonic", "mistral",
                 "deepseek_v3", "deepseek_v31", "granite", "phi4_mini_json", "glm45", "glm47", "internlm", "kimi_k2"):
        assert name in NAMES
    assert ReplyStyle.of(TEMPLATES["hermes"], "qwen3_xml").format is FORMATS["qwen3_coder"]
    for name, meant in (("mistral", "mistral_v11"), ("granite", "granite31")):
        assert named(name, TEMPLATES[meant]).name == meant
        assert named(name, TEMPLATES["hermes"]).name == name
    assert ReplyStyle.of("", reasoning_parser="qwen3").tags == THINK_TAGS["think"]
    assert {"deepseek_r1", "deepseek_v3", "glm45", "mistral", "granite"} <= REASONING_PARSERS.keys()
    assert ReplyStyle.of("<think></think>", reasoning_parser="none").tags is None


def test_the_template_tells_where_tools_stand() -> None:
    for template, in_system in (("{% if 'tools' in message %}{{ message['tools'] }}{% endif %}", True),
                                ("{% if tools %}{{ message.tools }}{% endif %}", False), ("{{ tools }}", False)):
        assert ReplyStyle.of(template).in_system is in_system


def test_the_template_tells_the_tags() -> None:
    assert ReplyStyle.of("{% if x %}<think>\n\n</think>{% endif %}").tags == THINK_TAGS["think"]
    assert ReplyStyle.of("[THINK]{{ t }}[/THINK]").tags == THINK_TAGS["mistral"]
    assert ReplyStyle.of("after 'Here is my response:'").tags == THINK_TAGS["granite"]
    assert ReplyStyle.of("{{ messages }}").tags is None


@pytest.fixture(scope="module", params=["text", "special", "added"])
def thinker(request: pytest.FixtureRequest) -> Walker:
    """By what the tags are: text, special tokens, or tokens that are none, as in Qwen's vocabulary."""
    tags = ["<think>", "</think>"]
    return Walker(tags if request.param == "special" else [], tuple(tags) if request.param == "added" else ())


THINKS = ReplyStyle.of(TEMPLATES["hermes"] + "<think></think>")
OPEN = "<|im_start|>assistant\n<think>\n"
CLOSED = OPEN + "\n</think>\n\n"


def bounded(prompt: str, budget: int, tools: ToolChoice | None = None, **asked: Any) -> StructuredOutputsParams:
    wanted = StructuredOutputsParams(**asked) if asked else None
    form = THINKS.wanted_form(tools or ToolChoice(), wanted, prompt, budget)
    assert form is not None
    return form


def test_a_thought_ends_where_its_budget_does(thinker: Walker) -> None:
    for budget in (0, 1, 7):
        for asked in ({}, {"regex": "Yes|No"}):
            ids = thinker.write(bounded(OPEN, budget, **asked), random.Random(budget), most=60)
            num_thought = max(i for i in range(len(ids)) if "</think>" in thinker.text(ids[i:]))
            assert num_thought <= budget, thinker.text(ids)
            said = thinker.text(ids).partition("</think>")[2]
            assert not asked or said.strip() in ("Yes", "No"), said


@pytest.mark.parametrize("ending", ["Hm.</think>", "</think>"])
def test_a_thought_may_end_before(thinker: Walker, ending: str) -> None:
    assert thinker.accepts(bounded(OPEN, 50), f"{ending}\n\nYes <b>!</b>")
    assert thinker.accepts(bounded(OPEN, 50, regex="Yes"), f"{ending}\n\nYes")
    assert not thinker.accepts(bounded(OPEN, 50, regex="Yes"), f"{ending}\n\nNo")
    assert not thinker.accepts(bounded(OPEN, 50), "Still thinking")


def test_where_nothing_is_opened_only_a_thought_is_bounded(thinker: Walker) -> None:
    form = bounded("<|im_start|>assistant\n", 3)
    for text in ("Yes, " * 20, "<b>Yes</b>", "\n <thin", "", "<think>Hm</think>\nYes", "<think></think>Yes"):
        assert thinker.accepts(form, text), text
    assert not thinker.accepts(form, "<think>" + "Hm, hm, hm. " * 9 + "</think>Yes")
    assert THINKS.wanted_form(ToolChoice(), None, CLOSED, 3) is None, "it thinks no more"


def test_a_bounded_thinker_still_calls(thinker: Walker) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    tools = ToolChoice(choice(SCHEMAS).tools)
    for prompt, thought in ((OPEN, "Hm</think>\n\n"), ("", ""), ("", "<think>Hm</think>")):
        form = bounded(prompt, 4, tools)
        for text in (call, "Yes.", f"I look.\n{call}\n{call}"):
            assert thinker.accepts(form, thought + text), thought + text
        assert thinker.accepts(bounded(prompt, 4, choice(SCHEMAS, must_call=True)), thought + call)
        assert not thinker.accepts(form, thought + '<tool_call>\n{"name": "other"}\n</tool_call>')


@pytest.mark.parametrize(("template", "says"), [
    ("{{ messages }}", "no tags in which it thinks"), ("Here is my response:", "ends with a sentence")])
def test_a_budget_without_tags_is_refused(template: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        ReplyStyle.of(template).wanted_form(ToolChoice(), None, "", 5)
