from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from quire.engine.errors import ConfigError, InvalidRequestError
from quire.engine.frontend.chat_template import ChatTemplate, load_chat_template, may_be_name
from quire.engine.tokenizers.tokenizer import Tokenizer
from tests.engine.conftest import model_at

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# The constructs that published templates are made of, a family's turn format each.
CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{{- "Today: " + date_string }}
{% for message in messages %}
    {%- if message['content'] is string %}
        {{- '[' + message['role'] + ']' + message['content'] | trim + '<|eot_id|>' }}
    {%- else %}
        {{- '[' + message['role'] + ']' }}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}{{- part['text'] | trim }}{%- endif %}
        {%- endfor %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL = """{{ bos_token }}{% set ns = namespace(turn=0) %}
{% for message in messages %}
    {% if message.role not in ['user', 'assistant'] %}{{ raise_exception('System role not supported') }}{% endif %}
    {% if (message.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
    {% if message.role == 'user' %}[INST] {{ message.content }} [/INST]
    {% else %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {% endif %}
    {% set ns.turn = ns.turn + 1 %}
    {% if ns.turn > 8 %}{% break %}{% endif %}
{% endfor %}
"""
PARTS_ONLY = """{% for message in messages %}{% for part in message['content'] %}
{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}
{% endfor %}{% endfor %}"""

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi <b> 'é' \"漢\"\n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n\n"}, {"role": "user", "content": " c "}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é & '>", "parameters": {"b": 1, "a": None}}}]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("source", [CHATML, LLAMA3, MISTRAL, "smollm2"], ids=["chatml", "llama3", "mistral", "smollm2"])
def test_renders_what_transformers_renders(smollm2: Tokenizer, source: str, messages: list[dict[str, Any]]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = smollm2.chat_templates["default"] if source == "smollm2" else source
    template = ChatTemplate(source, SPECIAL)
    for prompted in (True, False):
        for tools in (None, TOOLS):
            try:
                want = render_jinja_template([messages], tools=tools, chat_template=source,
                                             add_generation_prompt=prompted, **SPECIAL)[0][0]
            except TemplateError as refusal:
                with pytest.raises(InvalidRequestError, match=f"^{re.escape(str(refusal))}$"):
                    template.render(messages, tools, prompted)
            else:
                assert template.render(messages, tools, prompted) == want


@pytest.mark.parametrize("source", [CHATML, LLAMA3, MISTRAL, "smollm2"], ids=["chatml", "llama3", "mistral", "smollm2"])
@pytest.mark.parametrize("begun", ["Sure, it", "Sure,\n  it ", "b"])
def test_a_message_is_gone_on_with_where_it_ends(smollm2: Tokenizer, source: str, begun: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = smollm2.chat_templates["default"] if source == "smollm2" else source
    messages = [{"role": "user", "content": "b"}, {"role": "assistant", "content": begun}]
    [[want]] = [render_jinja_template([messages], chat_template=source, continue_final_message=True, **SPECIAL)[0]]
    got = ChatTemplate(source, SPECIAL).render(messages, None, False, continue_final_message=True)
    assert got.rstrip() == want.rstrip()  # transformers cuts white space off
    assert got.endswith(begun) or source == LLAMA3  # which trims


def test_what_cannot_be_gone_on_with_is_refused() -> None:
    user, said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So"}
    for messages, prompted, named in (([user], False, "last message"), ([said], True, "add_generation_prompt: false"),
                                      ([{**said, "content": ""}], False, "last message")):
        with pytest.raises(InvalidRequestError, match=named) as caught:
            ChatTemplate(CHATML, SPECIAL).render(messages, None, prompted, continue_final_message=True)
        assert caught.value.param == "continue_final_message"
    with pytest.raises(InvalidRequestError, match="changes the last message"):
        ChatTemplate("{% for m in messages %}{{ m.content | length }}{% endfor %}", SPECIAL).render(
            [user, said], None, False, continue_final_message=True)
    parts = {"role": "assistant", "content": [{"type": "text", "text": "So"}, {"type": "text", "text": " it"}]}
    assert ChatTemplate(PARTS_ONLY, SPECIAL).render([parts], None, False, continue_final_message=True).endswith(" it")


def test_the_templates_refusal_is_the_callers_to_read() -> None:
    with pytest.raises(InvalidRequestError, match=r"^System role not supported$") as caught:
        ChatTemplate(MISTRAL, SPECIAL).render([{"role": "system", "content": "x"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}, {"content": "x"}, {}])
def test_messages_that_a_template_cannot_render_are_the_callers_fault(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="cannot render") as caught:
        ChatTemplate(CHATML, SPECIAL).render([message])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("expression", ["''.__class__.__mro__", "messages.append(1)", "range(10**9)|list", "1/0"])
def test_templates_run_in_a_sandbox(expression: str) -> None:
    with pytest.raises(InvalidRequestError):
        ChatTemplate("{{ " + expression + " }}", {}).render([])


@pytest.mark.parametrize("source", [CHATML, LLAMA3, MISTRAL, PARTS_ONLY])
def test_content_may_be_a_text_or_its_parts(source: str) -> None:
    template = ChatTemplate(source, SPECIAL)
    text = template.render([{"role": "user", "content": "Hello"}])
    assert "Hello" in text
    assert template.render([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]) == text


def test_parts_are_joined_where_the_template_wants_a_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "one\ntwo" in ChatTemplate(CHATML, {}).render([{"role": "user", "content": parts}])


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "text", 1])
@pytest.mark.parametrize("source", [CHATML, PARTS_ONLY])
def test_other_parts_are_refused(source: str, part: Any) -> None:
    with pytest.raises(InvalidRequestError, match="content part"):
        ChatTemplate(source, {}).render([{"role": "user", "content": [part]}])


def test_variables_reach_the_template_but_cannot_replace_the_messages() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ messages[0].content }}", {})
    others = {"enable_thinking": False, "messages": [{"content": "theirs"}]}
    assert template.render([{"content": "mine"}], **others) == "False mine"


def test_the_date_is_todays() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y') }}", {}).render([])
    assert abs(int(rendered) - datetime.now().year) <= 1


def test_tools_choose_the_tool_template() -> None:
    template = ChatTemplate("plain", {}, tool_source="{{ tools[0].function.name }}")
    assert (template.render([]), template.render([], TOOLS)) == ("plain", "f")


def test_an_override_is_a_file_or_the_template_itself(tmp_path: Path, smollm2: Tokenizer) -> None:
    (tmp_path / "t.jinja").write_text("é{{ eos_token }}", encoding="utf-8")
    model = model_at("m")
    assert load_chat_template(model, str(tmp_path / "t.jinja"), smollm2).render([]) == "é<|im_end|>"
    assert load_chat_template(model, "{{ eos_token }}", None).render([]) == ""
    assert load_chat_template(model, None, smollm2).render(CONVERSATIONS[1]).startswith("<|im_start|>system\nBe brief.")


def named(templates: dict[str, str]) -> Tokenizer:
    rust = RustTokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return Tokenizer(rust, special_tokens={}, chat_templates=templates)


def test_an_override_may_be_the_name_of_one_of_the_models_templates() -> None:
    tokenizer = named({"default": "plain", "tool_use": "{{ tools|length }} tools", "rag": "rag {{ tools|length }}"})
    model = model_at("m")
    chosen = load_chat_template(model, None, tokenizer)
    assert (chosen.render([]), chosen.render([], TOOLS)) == ("plain", "1 tools")
    chosen = load_chat_template(model, "rag", tokenizer)  # with tools too: it was asked for
    assert chosen.render([], TOOLS) == "rag 1"
    with pytest.raises(ConfigError, match=r"'rga' is neither one of the model's \(default, rag, tool_use\), a read"):
        load_chat_template(model, "rga", tokenizer)


def test_templates_without_a_default_are_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"by default, only rag, tool_use, .*--chat-template NAME"):
        load_chat_template(model_at("m"), None, named({"tool_use": "", "rag": ""}))


def test_only_what_looks_like_no_file_may_be_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("")
    texts = ("tool_use", "here", "a.jinja", "./tool_use", "{{ x }}")
    assert [may_be_name(text) for text in texts] == [True, False, False, False, False]


@pytest.mark.parametrize(("override", "message"), [("no/such/file", "neither a readable file"),
                                                    ("{% if %}", "not valid Jinja: line 1"),
                                                    ("{" * 100_000, "not valid Jinja: it is nested too deep")])
def test_a_broken_override_is_a_configuration_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_chat_template(model_at("m"), override, None)


def test_a_model_without_template_says_what_to_do() -> None:
    with pytest.raises(InvalidRequestError, match="--chat-template"):
        load_chat_template(model_at("m"), None, None)
