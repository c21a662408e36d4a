"""A request as coding agents send them to Anthropic's API, made up: a long system prompt in blocks, twenty tools, a
turn with thoughts and calls behind it, and fields that only Anthropic's servers heed.
"""

from __future__ import annotations

from typing import Any

CACHED = {"cache_control": {"type": "ephemeral"}}
HEADERS = {"anthropic-version": "2023-06-01",
           "anthropic-beta": "interleaved-thinking-2025-05-14,context-hints-2026-01-01",
           "x-app": "cli", "user-agent": "an-agent/3.1 (external, cli)", "x-stainless-lang": "js"}
_TEXT = {"type": "string"}
_LINES = {"type": "integer", "minimum": 0, "description": "A number of lines"}
_FLAG = {"type": "boolean", "default": False}
_PATH = {"type": "string", "description": "The absolute path of a file or directory"}
_STEPS = {"type": "array", "minItems": 1, "items": {
    "type": "object", "required": ["what", "state"], "additionalProperties": False,
    "properties": {"what": {"type": "string", "minLength": 1}, "state": {"enum": ["pending", "in_progress", "done"]}}}}
_EDITS = {"type": "array", "items": {"type": "object", "required": ["before", "after"], "properties": {
    "before": _TEXT, "after": _TEXT, "all": _FLAG}}}
# Name -> parameters; those before the first None are required.
_TOOLS: dict[str, tuple[tuple[str, dict[str, Any]] | None, ...]] = {
    "Read": (("file_path", _PATH), None, ("offset", _LINES), ("limit", _LINES)),
    "Write": (("file_path", _PATH), ("content", _TEXT), None),
    "Edit": (("file_path", _PATH), ("old_string", _TEXT), ("new_string", _TEXT), None, ("replace_all", _FLAG)),
    "MultiEdit": (("file_path", _PATH), ("edits", _EDITS), None),
    "Shell": (("command", _TEXT), None, ("timeout", {"type": "number", "maximum": 600_000}), ("description", _TEXT),
              ("run_in_background", _FLAG)),
    "ShellOutput": (("shell_id", _TEXT), None, ("filter", {"type": "string", "format": "regex"})),
    "KillShell": (("shell_id", _TEXT), None),
    "Find": (("pattern", _TEXT), None, ("path", _PATH)),
    "Search": (("pattern", _TEXT), None, ("path", _PATH), ("glob", _TEXT), ("-i", _FLAG), ("-A", _LINES),
               ("output_mode", {"type": "string", "enum": ["content", "files_with_matches", "count"]})),
    "List": (("path", _PATH), None, ("ignore", {"type": "array", "items": _TEXT})),
    "Plan": (("steps", _STEPS), None),
    "LeavePlanning": (("plan", _TEXT), None),
    "Ask": (("questions", {"type": "array", "maxItems": 4, "items": {"type": "object", "properties": {
        "question": _TEXT, "options": {"type": "array", "items": _TEXT}}, "required": ["question"]}}), None),
    "Delegate": (("description", _TEXT), ("prompt", _TEXT), ("agent", {"enum": ["general", "reviewer"]}), None),
    "Notebook": (("notebook_path", _PATH), ("new_source", _TEXT), None, ("cell_id", _TEXT),
                 ("edit_mode", {"type": ["string", "null"], "enum": ["replace", "insert", "delete", None]})),
    "FetchPage": (("url", {"type": "string", "format": "uri"}), ("prompt", _TEXT), None),
    "SearchWeb": (("query", {"type": "string", "minLength": 2}), None, ("allowed_domains", {
        "anyOf": [{"type": "array", "items": _TEXT}, {"type": "null"}]})),
    "Skill": (("skill", _TEXT), None, ("args", {})),
    "mcp__tracker__create_issue": (("title", _TEXT), ("body", {"$ref": "#/$defs/markdown"}), None),
    "mcp__tracker__list_issues": (None, ("state", {"const": "open"})),
}


def _tool(name: str, parameters: tuple[tuple[str, dict[str, Any]] | None, ...]) -> dict[str, Any]:
    required = [p[0] for p in parameters[:parameters.index(None)] if p is not None]
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": False,
              "properties": dict(p for p in parameters if p is not None), "required": required,
              "$defs": {"markdown": {"type": "string"}}}
    return {"name": name, "description": f"{name}: what it does, and when to use it.\n\n- A rule.\n- Another.",
            "input_schema": schema, "eager_input_streaming": True}


TOOLS = [_tool(name, parameters) for name, parameters in _TOOLS.items()]
TOOLS[-1] |= CACHED
SYSTEM = [
    {"type": "text", "text": "x-anthropic-billing-header: version=3.1; entry=cli; hash=0a1b2;"},
    {"type": "text", "text": "You are an agent that helps with code.", **CACHED},
    {"type": "text", "text": "# Rules\n" + "\n".join(f"{i}. Keep to rule {i}." for i in range(40)), **CACHED},
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [
        {"type": "text", "text": "<reminder>\nThe directory is /src.\n</reminder>"},
        {"type": "text", "text": "Why does the test fail?", **CACHED}]},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "I should look.", "signature": "c2lnbmF0dXJl"},
        {"type": "redacted_thinking", "data": "RW1wdHk="},
        {"type": "text", "text": "I look at both."},
        {"type": "tool_use", "id": "toolu_01A", "name": "Read", "input": {"file_path": "/src/a.py"}},
        {"type": "tool_use", "id": "toolu_01B", "name": "Shell", "caller": {"type": "direct"},
         "input": {"command": "pytest -q", "description": "Run the tests"}}]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "toolu_01A", "content": [{"type": "text", "text": "1  x = 1"},
                                                                        {"type": "text", "text": "2  y = x"}]},
        {"type": "tool_result", "tool_use_id": "toolu_01B", "content": "1 failed", "is_error": True, **CACHED},
        {"type": "text", "text": "<reminder>Nobody has a plan yet.</reminder>"}]},
]
REQUEST: dict[str, Any] = {
    "model": "m", "max_tokens": 32_000, "stream": True, "system": SYSTEM, "messages": MESSAGES, "tools": TOOLS,
    "temperature": 1, "thinking": {"type": "enabled", "budget_tokens": 31_999},
    "metadata": {"user_id": "user_1_session_2"},
    "output_config": {"effort": "medium"}, "context_management": {"edits": [{"type": "clear_thinking", "keep": "all"}]},
    "context_hint": {"enabled": True}}
