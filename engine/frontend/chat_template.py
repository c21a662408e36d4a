"""Messages to prompt text through a model's Jinja template, as transformers renders it.

Templates come with checkpoints, so they run in Jinja's sandbox. Refuses to know token ids and HTTP; called by the chat
endpoint and by `LLM.chat`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire.engine.errors import ConfigError, InvalidRequestError
from quire.engine.model_config import ModelConfig
from quire.engine.tokenizers.control_tokens import ControlTokens, Rendered
from quire.engine.tokenizers.tokenizer import Tokenizer

IMAGE_PART = {"type": "image"}  # of a message, in place of an image
_NAME = re.compile(r"[\w-]{1,100}")
# Not for callers to set.
RESERVED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "self"})


class _Raised(jinja2.TemplateError):
    """The template itself refused the messages."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks what an assistant said, for training; here its content is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template.

    Args:
        source: the Jinja source; `tool_source` is the one to use when tools are given, where the model has two.
        special_tokens: "bos_token" and its like, which templates use as variables.
        control: the tokens that messages may spell but not make; None: what they spell, they make.

    Raises:
        ConfigError: the source is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], tool_source: str | None = None,
                 control: ControlTokens | None = None) -> None:
        self.source = source if tool_source is None else tool_source  # with tools
        self._special_tokens = special_tokens
        self._control = control
        self._plain = _Compiled(source)
        self._with_tools = self._plain if tool_source is None else _Compiled(tool_source)

    def render(self, messages: Sequence[dict[str, Any]], /, tools: list[dict[str, Any]] | None = None,
               add_generation_prompt: bool = True, continue_final_message: bool = False, **kwargs: Any) -> str:
        """The prompt text, which the model's tokenizer encodes; `kwargs` become variables of the template.

        `continue_final_message`: it ends where the last message, the assistant's, ends so far.

        Raises:
            InvalidRequestError: the template refuses the messages, or cannot render them; param is "messages".
        """
        if continue_final_message:
            _check_continued(messages, add_generation_prompt)
        end = f"\ue000{secrets.token_hex(8)}\ue000" if continue_final_message else ""
        compiled = self._with_tools if tools else self._plain
        adapted = [compiled.adapted(message) for message in messages]
        marker = ""
        try:
            if self._control is not None:
                marker, adapted, (tools, kwargs) = self._control.mark(adapted, (tools, kwargs))
            if end:
                adapted[-1] = _ending(adapted[-1], end)
            text = compiled.template.render({"documents": None, **self._special_tokens, **kwargs, "tools": tools,
                                             "messages": adapted, "add_generation_prompt": add_generation_prompt})
        except _Raised as error:
            raise InvalidRequestError(str(error).replace(marker, ""), "messages") from error
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
                RecursionError) as error:  # whatever a template's expressions run into
            why = str(error).replace(marker, "")
            raise InvalidRequestError(f"The model's chat template cannot render these messages: {why}",
                                      "messages") from error
        if end:
            text, found, _ = text.partition(end)
            if not found:
                raise InvalidRequestError("The model's chat template changes the last message, so that it cannot be "
                                          "gone on with.", "continue_final_message")
        return Rendered(text, marker) if marker else text


def _check_continued(messages: Sequence[dict[str, Any]], add_generation_prompt: bool) -> None:
    """Raises InvalidRequestError where there is nothing to go on with."""
    if add_generation_prompt:
        raise InvalidRequestError("continue_final_message goes on with the last message, and add_generation_prompt "
                                  "begins a new one; send add_generation_prompt: false with it.",
                                  "continue_final_message")
    if messages[-1].get("role") != "assistant" or not messages[-1].get("content") or messages[-1].get("tool_calls"):
        raise InvalidRequestError("continue_final_message needs a last message of the assistant's, with a text.",
                                  "continue_final_message")


def _ending(message: dict[str, Any], end: str) -> dict[str, Any]:
    """The message with `end` behind its text."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + end}
    return {**message, "content": [*content[:-1], {**content[-1], "text": content[-1]["text"] + end}]}


def load_chat_template(model: ModelConfig, override: str | None, tokenizer: Tokenizer | None, *,
                       allow_control_tokens: bool = False) -> ChatTemplate:
    """The template `override` (the name of one that came with the tokenizer, a file, or the template itself), else the
    tokenizer's default, and with tools the one that it has for them.

    `allow_control_tokens`: what messages spell may become control tokens.

    Raises:
        ConfigError: `override` is none of these, or the template is not valid Jinja.
        InvalidRequestError: the model has no chat template.
    """
    special_tokens = tokenizer.special_tokens if tokenizer is not None else {}
    control = tokenizer.control_tokens if tokenizer is not None and not allow_control_tokens else None
    templates = tokenizer.chat_templates if tokenizer is not None else {}
    if override is not None:
        return ChatTemplate(templates.get(override) or _literal_or_file(override, templates), special_tokens,
                            control=control)
    source = templates.get("default")
    if source is None:
        lacks, what = ("", "FILE") if not templates else (f" by default, only {_names(templates)}", "NAME")
        raise InvalidRequestError(
            f"The model {model.path} has no chat template{lacks}, so it cannot take messages. Start the server with "
            f"--chat-template {what}, or send a plain prompt to /v1/completions.", "messages")
    return ChatTemplate(source, special_tokens, templates.get("tool_use"), control)


def may_be_name(override: str) -> bool:
    """Whether only the tokenizer can tell what `override` is, for it looks like the name of a template, and no file."""
    return _NAME.fullmatch(override) is not None and not Path(override).exists()


def _literal_or_file(text: str, templates: dict[str, str]) -> str:
    if "{" in text or "\n" in text:  # no path looks like that, and every template does
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = f"one of the model's ({_names(templates)}), " if templates else ""
        raise ConfigError(f"--chat-template: {text!r} is neither {names}a readable file nor a template: "
                          f"{error}") from error


def _names(templates: dict[str, str]) -> str:
    return ", ".join(sorted(templates))


class _Compiled:
    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                    extensions=[_GenerationBlock, loopcontrols])
        environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self.template = environment.from_string(source)
            tree = environment.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"The chat template is not valid Jinja: line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise ConfigError("The chat template is not valid Jinja: it is nested too deep") from error
        self._takes_parts = _iterates_over_content(tree)
        self._takes_only_parts = self._takes_parts and not any(t.name == "string" for t in tree.find_all(nodes.Test))

    def adapted(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with its content in the form that the template reads: a text, or a list of parts."""
        content = message.get("content")
        if isinstance(content, str) and self._takes_only_parts:
            return {**message, "content": [{"type": "text", "text": content}]}
        if not isinstance(content, list):
            return message
        if self._takes_parts and IMAGE_PART in content:
            content = [part for part in content if part != IMAGE_PART]
        texts = [_part_text(part) for part in content]
        return message if self._takes_parts else {**message, "content": "\n".join(texts)}


def _part_text(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if part == IMAGE_PART:
        raise InvalidRequestError("The model's chat template has no place for images.", "messages")
    raise InvalidRequestError(f"messages holds a content part of type {kind!r}; this model takes parts of type 'text', "
                              "each with a string 'text'.", "messages")


def _iterates_over_content(tree: nodes.Template) -> bool:
    """Whether the template loops over the parts of a message's content."""
    for loop in tree.find_all(nodes.For):
        subject: nodes.Node | None = loop.iter
        while isinstance(subject, nodes.Filter):
            subject = subject.node
        name = (subject.name if isinstance(subject, nodes.Name) else
                subject.attr if isinstance(subject, nodes.Getattr) else
                subject.arg.value if isinstance(subject, nodes.Getitem) and isinstance(subject.arg, nodes.Const) else
                None)
        if name == "content":
            return True
    return False


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _Raised(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
