"""THE list of the ways in which models write calls. A new one is a file beside this one, and a line here.

Which one a model writes is seen in its chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.app.replies.tools import hermes
from quire.app.replies.tools.parser import Schemas, ToolParser

Form = dict[str, Any]  # as in `structural_tag`


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """`tag` is the form of a call of one tool, {"begin", "content", "end"}; all begin with `trigger`, which starts
    nothing else. With several, `separator` is between them, and all are within `opening` and `closing`."""

    name: str
    in_template: tuple[str, ...]  # any of them tells that a template is for this form
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


# In the order in which templates are searched: a marker of one may be part of another's.
_ALL = (
    ToolFormat("hermes", ("<tool_call>",), hermes.HermesParser, hermes.BEGIN,
               _json_tag(f"{hermes.BEGIN}\n", f"\n{hermes.END}")),
)
FORMATS = {one.name: one for one in _ALL}
GENERIC = "hermes"  # for models whose template knows no tools: `generic_tools` tells them how to call


def format_of(template: str) -> ToolFormat | None:
    """The one that a template's source is for."""
    return next((one for one in FORMATS.values() if any(marker in template for marker in one.in_template)), None)
