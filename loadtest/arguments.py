"""What the measurements' command lines have in common: counts, files that can be written, flags of the engine."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from quire.app.command_parser import CommandParser
from quire.app.options import OPTIONS, parse
from quire.app.settings import flag

# Said otherwise here, or of no meaning for token ids.
NOT_FLAGS = ("model", "tokenizer", "skip_tokenizer_init", "chat_template", "load_format")
ENGINE_FLAGS = [option for option in OPTIONS.values() if option.of_engine and option.name not in NOT_FLAGS]


def count(text: str) -> int:
    """A whole number of things to do; for argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def positive(text: str) -> float:
    """For argparse."""
    return _number(text, float("inf"))


def share(text: str) -> float:
    """Above 0, at most 1; for argparse."""
    return _number(text, 1.0)


def _number(text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number <= most or number == float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0" + ("" if most > 1 else " and at most 1"))
    return number


def writable(text: str) -> Path:
    """A file for the results: what is wrong with it is told now, not after the work; for argparse."""
    try:
        with open(text, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    return Path(text)


def offline_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `quire bench NAME`, which runs an engine in its own process; `doc` is what --help says first."""
    parser = CommandParser(prog=f"quire bench {name}", description=doc,
                           usage=f"quire bench {name} --model MODEL [--flag VALUE ...]",
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory; loadtest/models holds the shapes of our log")
    parser.add_argument("--load-format", default="dummy", help="dummy (random weights), or as quire serve's")
    return parser


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine flags, as of quire serve")
    for option in ENGINE_FLAGS:
        if option.type is bool:
            group.add_argument(flag(option.name), action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(flag(option.name), type=functools.partial(_parsed, option.type),
                               metavar={int: "N", float: "X"}.get(option.type, "TEXT"))


def engine_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, by name."""
    given = {option.name: getattr(args, option.name) for option in ENGINE_FLAGS}
    return {name: value for name, value in given.items() if value is not None}


def _parsed(wanted: Any, text: str) -> Any:
    try:
        return parse(text, wanted)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
