"""vLLM's flags on Quire's command line: their spellings, and those that Quire itself does not have.

What becomes of a flag is in `quire.engine.frontend.vllm_arguments`; here is how it is written.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from quire.app.settings import flag
from quire.engine.frontend.vllm_arguments import NEGATED, OTHER_NAMES, VLLM_ARGUMENTS

_DOTTED = re.compile(r"(--?[\w-]+)\.([\w.-]+)")  # --compilation-config.mode, -cc.mode
_PROGRAM = re.compile(r"((vllm|quire) serve|python3? -m (vllm\.entrypoints\.(openai\.)?api_server|quire serve))(?= |$)")
SWITCHES = [flag(name) for name, row in VLLM_ARGUMENTS.items() if row.takes == "switch"] + [
    "--disable-uvicorn-access-log", *map(flag, NEGATED)]


def without_program(argv: list[str]) -> list[str]:
    """`argv` without the words that start a server, for those who paste a whole command line."""
    found = _PROGRAM.match(" ".join(argv[:4]))
    return argv[len(found[0].split()):] if found else argv


def spelled(argv: list[str]) -> list[str]:
    """`argv` with hyphens in the flags' names, and the parts of a flag with dots as one value (JSON)."""
    words: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            first, dot, rest = name.partition(".")
            name = first.replace("_", "-") + dot + rest
        if match := _DOTTED.fullmatch(name):
            if not equals and left and not left[0].startswith("-"):
                value = left.pop(0)
            name, equals, value = match[1], "=", json.dumps({match[2]: value})
        words.append(name + equals + value)
    return words


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those that Quire does not have, or under another name: understood, and left out of the help."""
    for written in (*OTHER_NAMES, *NEGATED):
        _add(parser, written, "switch" if flag(written) in SWITCHES else "value", "")
    for name, row in VLLM_ARGUMENTS.items():
        _add(parser, name, row.takes, row.short)


def _add(parser: argparse.ArgumentParser, name: str, takes: str, short: str) -> None:
    settings: dict[str, Any] = {"dest": name, "help": argparse.SUPPRESS}
    if takes == "switch":
        settings["action"] = argparse.BooleanOptionalAction
    elif takes == "values":
        settings["nargs"] = "*"
    parser.add_argument(flag(name), *([short] if short else []), **settings)


def meant(raw: Any) -> Any:
    """What a text on the command line or in a file says: a number, a list, None; else the text itself."""
    if isinstance(raw, list):
        return [meant(part) for part in raw]
    if not isinstance(raw, str):
        return raw
    if raw == "None":
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw
