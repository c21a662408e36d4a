"""Tools for a model whose chat template knows none: what is in its prompt then, and in the conversation that was.

The calls are written as Hermes writes them, which many models have seen.
"""

from __future__ import annotations

import json
from typing import Any

from quire.app.replies.tools.hermes import BEGIN, END

_HOW = f"""You may call functions. These are the functions, in JSON:
{{tools}}
To call one, write its name and arguments so, and nothing after the last call:
{BEGIN}
{{{{"name": NAME, "arguments": {{{{...}}}}}}}}
{END}"""


def told(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation without fields for calls: they are texts in it."""
    if not tools:
        return _plain_turns(messages)
    how = _HOW.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    first, *rest = messages
    if first["role"] == "system":
        said = _text(first)
        system = {**first, "content": f"{said}\n\n{how}" if said else how}
    else:
        system, rest = {"role": "system", "content": how}, messages
    return [system, *_plain_turns(rest)]


def _plain_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results, and what the user says to them, are one message: many templates want roles to alternate."""
    turns: list[dict[str, Any]] = []
    may_join = False  # whether the last message has a result
    for message in messages:
        is_result, plain = message["role"] == "tool", _plain(message)
        if turns and turns[-1]["role"] == plain["role"] == "user" and (is_result or may_join):
            turns[-1] = {"role": "user", "content": _joined(turns[-1]["content"], plain["content"])}
            may_join = True
        else:
            turns.append(plain)
            may_join = is_result
    return turns


def in_system(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation whose first message, of the system's, has the tools in a field, as JSON."""
    written = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    first, *rest = messages
    if first["role"] != "system":
        first, rest = {"role": "system", "content": ""}, messages
    return [{**first, "tools": written}, *rest]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = [f"{BEGIN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{END}" for call in calls]
    return {"role": message["role"], "content": "\n".join(filter(None, [_text(message), *written]))}


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n{second}"
    return [*_parts(first), {"type": "text", "text": "\n"}, *_parts(second)]


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
