"""The tags of Hermes, around a JSON object (`tagged_json`); GLM writes something else between them."""

from __future__ import annotations

BEGIN, END = "<tool_call>", "</tool_call>"
