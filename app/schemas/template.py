"""What a request gives to the model's chat template beside the conversation."""

from __future__ import annotations

from typing import Any

from quire.app.errors import ApiError
from quire.app.schemas.sampling import check_at_most
from quire.engine.arguments import shown
from quire.engine.frontend.chat_template import RESERVED_VARIABLES

MAX_KWARGS_DEPTH = 16
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def check_template_kwargs(kwargs: dict[str, Any]) -> None:
    """Raises ApiError (400)."""
    taken = RESERVED_VARIABLES & kwargs.keys()
    if taken:
        raise ApiError(400, f"chat_template_kwargs may not set {', '.join(sorted(taken))}.", "chat_template_kwargs")
    check_at_most("chat_template_kwargs", _depth(kwargs), MAX_KWARGS_DEPTH, what="levels")


def check_effort(name: str, effort: str | None) -> None:
    """Raises ApiError (400)."""
    if effort is not None and effort not in EFFORTS:
        raise ApiError(400, f"{name} must be one of {', '.join(EFFORTS)}; got {shown(effort)}.", name)


def template_variables(kwargs: dict[str, Any], effort: str | None) -> dict[str, Any]:
    """`kwargs` go before what an `effort` of reasoning sets."""
    if effort is None:
        return kwargs
    thinks = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks, **kwargs}


def _depth(value: Any) -> int:
    """How many lists and objects lie within each other. Without recursion: it measures what may be deep."""
    depth, level = 0, [value]
    while True:
        level = [inner for item in level if isinstance(item, (dict, list))
                 for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return depth
        depth += 1
