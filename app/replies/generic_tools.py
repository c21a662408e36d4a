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
        return [_plain(message) for message in messages]
    how = _HOW.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    first, *rest = messages
    if first["role"] == "system":
        said = first["content"] if isinstance(first["content"], str) else "\n".join(
            part["text"] for part in first["content"])
        system = {**first, "content": f"{said}\n\n{how}" if said else how}
    else:
        system, rest = {"role": "system", "content": how}, messages
    return [system, *(_plain(message) for message in rest)]


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
    said = message["content"] if isinstance(message["content"], str) else "\n".join(
        part["text"] for part in message["content"])
    return {"role": message["role"], "content": "\n".join(filter(None, [said, *written]))}
