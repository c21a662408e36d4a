"""The tools of a request, as OpenAI's chat has them; other APIs' are turned into these.

Checked by hand: a tool is passed on to the model's template whole, with all that its author wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.app.errors import ApiError
from quire.engine.arguments import shown

MAX_TOOLS = 512
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a reply may do with its tools, which are OpenAI's objects."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    must_call: bool = False
    name: str = ""  # of the one that must be called; empty: any
    several: bool = True  # whether it may call more than once

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Of the parameters, by name: of all tools that may be called."""
        functions = [tool["function"] for tool in self.tools]
        return {f["name"]: f.get("parameters") or {} for f in functions if self.name in ("", f["name"])}

    @property
    def strict(self) -> bool:
        """Whether a tool asks that its calls fit its schema, even where nothing must be called."""
        return any(tool["function"].get("strict") for tool in self.tools)


def checked_choice(tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None, *, several: bool
                   ) -> ToolChoice:
    """Raises ApiError that names the place."""
    tools = tools or []
    if len(tools) > MAX_TOOLS:
        raise ApiError(400, f"tools may hold at most {MAX_TOOLS} tools, got {len(tools)}.", "tools")
    for i, tool in enumerate(tools):
        _check(tool, f"tools[{i}]")
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, f"tools holds two tools named {twice!r}; calls could not tell them apart.", "tools")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        if not isinstance(allowed, dict):
            raise _no_choice(choice)
        tools, choice = only_allowed(tools, allowed, "tool_choice.allowed_tools"), allowed.get("mode", "auto")
        names = [tool["function"]["name"] for tool in tools]
    if choice is None or choice in ("auto", "none"):
        return ToolChoice([] if choice == "none" else tools, several=several)
    if not tools:
        raise ApiError(400, f"tool_choice is {shown(choice)}, and there are no tools to choose from.", "tool_choice")
    if choice == "required":
        return ToolChoice(tools, must_call=True, several=several)
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if name is None:
        raise _no_choice(choice)
    if name not in names:
        raise ApiError(400, f"tool_choice names {shown(name)}, which is none of the tools.", "tool_choice")
    return ToolChoice(tools, must_call=True, name=name, several=False)


def only_allowed(tools: list[dict[str, Any]], allowed: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Those of `tools` that an object of the type "allowed_tools" names, which stands at `where`; with a mode "auto" or
    "required". A tool's name is in `function` there, as chat has it, or beside the type. Raises ApiError."""
    listed = allowed.get("tools")
    if allowed.get("mode", "auto") not in ("auto", "required") or not isinstance(listed, list):
        raise ApiError(400, f"{where} must have a mode, \"auto\" or \"required\", and a list of tools; got "
                       f"{shown(allowed)}.", where)
    names, known = set(), {tool["function"]["name"] for tool in tools}
    for i, tool in enumerate(listed):
        named = tool.get("function", tool) if isinstance(tool, dict) else None
        name = named.get("name") if isinstance(named, dict) else None
        if not isinstance(name, str) or name not in known:
            raise ApiError(400, f"{where}.tools[{i}] names {shown(name)}, which is none of the tools.",
                           f"{where}.tools[{i}]")
        names.add(name)
    return [tool for tool in tools if tool["function"]["name"] in names]


def _no_choice(choice: str | dict[str, Any]) -> ApiError:
    return ApiError(400, f"tool_choice must be one of {', '.join(_CHOICES)}, or {{\"type\": \"function\", "
                    f"\"function\": {{\"name\": NAME}}}}, or {{\"type\": \"allowed_tools\", \"allowed_tools\": "
                    f"{{\"mode\": ..., \"tools\": [...]}}}}; got {shown(choice)}.", "tool_choice")


def _check(tool: dict[str, Any], where: str) -> None:
    if tool.get("type", "function") != "function":
        raise ApiError(400, f"{where}.type must be 'function', got {shown(tool['type'])}.", f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise ApiError(400, f"{where}.function must be an object, got {shown(function)}.", f"{where}.function")
    check_function(function, f"{where}.function")


def check_function(function: dict[str, Any], where: str) -> None:
    """Raises ApiError that names the place."""
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ApiError(400, f"{where}.name must be 1 to 128 letters, digits, '_', '-' or '.', got {shown(name)}.",
                       f"{where}.name")
    for key, kind, called in (("description", str, "text"), ("parameters", dict, "a JSON schema: an object"),
                              ("strict", bool, "true or false")):
        value = function.get(key)
        if value is not None and not isinstance(value, kind):
            raise ApiError(400, f"{where}.{key} must be {called}, got {shown(value)}.", f"{where}.{key}")
    of_parameters = (function.get("parameters") or {}).get("type", "object")
    if of_parameters != "object" and not (isinstance(of_parameters, list) and "object" in of_parameters):
        raise ApiError(400, f"{where}.parameters.type must be 'object', as arguments have names; got "
                       f"{shown(of_parameters)}.", f"{where}.parameters")
