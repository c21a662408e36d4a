"""argparse, save that a mistake is one line, which names what was probably meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from quire.app.options import unknown


class CommandParser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        found, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                name = word.partition("=")[0]
                self.error(f"{name}: {unknown(name, _flags(self))}")
        if rest:
            self.error(f"{rest[0]}: not expected here")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(map(str, action.choices or ()))
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            raise argparse.ArgumentError(action, f"there is no {value!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"there are {', '.join(choices)}"))


def _flags(parser: argparse.ArgumentParser) -> Iterable[str]:
    """Its own and those of its commands."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _flags(command)
