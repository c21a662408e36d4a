"""A setting as people write it: each field of the two schemas is a flag, a variable and a line of a file.

Called by the command line, by whatever reads settings (`quire.app.sources`) and by whatever shows them.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from quire.app.otlp_endpoint import without_credentials
from quire.app.settings import ServeSettings
from quire.engine.config import EngineArgs

_HUMAN_INTEGER = re.compile(r"(-?\d+(?:\.\d+)?)([kKmMgG])")
# As vLLM reads them: small letters are powers of 1000, capitals of 1024.
_MULTIPLIERS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Option:
    name: str
    type: Any  # str, int, float, bool, list[str] or dict[str, Any]
    default: Any
    help: str
    of_engine: bool


def variable(name: str) -> str:
    return "QUIRE_" + name.upper()


def _options() -> dict[str, Option]:
    found = {}
    for owner in (EngineArgs, ServeSettings):
        hints = typing.get_type_hints(owner)
        for f in dataclasses.fields(owner):
            if f.name != "engine":
                found[f.name] = Option(f.name, _without_none(hints[f.name]), f.default, f.metadata["help"],
                                       owner is EngineArgs)
    return found


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


OPTIONS = _options()


def unknown(name: str, known: Iterable[str]) -> str:
    """Says so of `name`, and which of `known` is near; that they begin with -- or QUIRE_ makes none of them near."""
    prefix = next((each for each in ("--", "QUIRE_") if name.startswith(each)), "")
    bare = [each.removeprefix(prefix) for each in known]
    close = difflib.get_close_matches(name.removeprefix(prefix), bare, n=1)
    return f"there is no setting {name!r}" + (f"; did you mean {prefix + close[0]!r}?" if close else "")


def parse(raw: Any, wanted: Any) -> Any:
    """`raw`, a text or a value that a file already typed, as `wanted`. Raises ValueError."""
    if wanted == list[str]:
        parts = raw if isinstance(raw, list) else [raw]
        if len(parts) == 1 and isinstance(parts[0], str):
            found = as_json_list(parts[0])
            parts = parts if found is None else found
        return [part.strip() if isinstance(part, str) else str(part) for part in parts]
    if wanted == dict[str, Any]:
        return raw if isinstance(raw, dict) else _parse_object(raw)
    if isinstance(raw, (list, dict)):
        raise ValueError(f"{raw!r} is not a single value")
    if wanted is bool:
        return _parse_bool(raw)
    if wanted is int:
        return _parse_int(raw)
    if wanted is float:
        return _parse_float(raw)
    return raw if isinstance(raw, str) else str(raw)


def as_json_list(raw: str) -> list[str] | None:
    """The texts in `raw` where it is a list in JSON, as vLLM's command lines have some; None: it is none."""
    try:
        return msgspec.json.decode(raw, type=list[str]) if raw.lstrip().startswith("[") else None
    except msgspec.MsgspecError:
        return None


def _parse_object(raw: Any) -> dict[str, Any]:
    """JSON, or as older versions of vLLM have it: image=4,video=0. Numbers may be texts, as of a flag with dots."""
    text = str(raw).strip()
    if not text.startswith("{"):
        text = "{" + ",".join(f'"{name.strip()}":{value}' for name, _, value in
                              (part.partition("=") for part in text.split(",") if part)) + "}"
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
        return {name: int(value) if isinstance(value, str) and value.isdecimal() else value
                for name, value in found.items()}
    except msgspec.MsgspecError:
        raise ValueError(f"{raw!r} is no JSON object") from None


def _parse_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{raw!r} is neither true nor false")


def _parse_int(raw: Any) -> int:
    text = str(raw).strip()
    human = _HUMAN_INTEGER.fullmatch(text)
    if human:
        value = float(human[1]) * _MULTIPLIERS[human[2]]
        if value == int(value):
            return int(value)
    elif not isinstance(raw, bool):
        try:
            return int(text)
        except ValueError:
            pass
    raise ValueError(f"{raw!r} is not a whole number (4096, or 4k = 4000, 4K = 4096)")


def _parse_float(raw: Any) -> float:
    try:
        if not isinstance(raw, bool):
            return float(raw)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{raw!r} is not a number")


def shown(settings: ServeSettings) -> dict[str, Any]:
    """The value of every option, secrets redacted."""
    values = {}
    for name, option in OPTIONS.items():
        owner: Any = settings.engine if option.of_engine else settings
        value = getattr(owner, name)
        if name == "api_key" and value:
            value = f"{len(value)} set (not shown)"
        if name == "otlp_traces_endpoint" and value:
            value = without_credentials(value)
        values[name] = value
    return values
