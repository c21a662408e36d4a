"""argparse, save that a mistake is one line, which names what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from quire.app.options import unknown


class _Missing(Exception):
    pass


class CommandParser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = sys.argv[1:] if args is None else list(args)
        try:
            found, rest = super().parse_known_args(words, namespace)
        except _Missing as missing:  # perhaps because it is mistyped
            self._refuse_unknown([word for word in words if word.startswith("--")], _flags(self))
            self._leave(str(missing))
        self.refuse(rest)
        return found

    def parse_known(self, words: Sequence[str]) -> tuple[Any, list[str]]:
        """What is known of `words`, and the rest, which is another's."""
        try:
            return super().parse_known_args(words)
        except _Missing as missing:
            self._leave(str(missing))

    def refuse(self, rest: list[str]) -> None:
        self._refuse_unknown(rest, ())
        if rest:
            self.error(f"{rest[0]}: not expected here")

    def _refuse_unknown(self, words: list[str], known: Iterable[str]) -> None:
        known = list(known)
        for word in words:
            name = word.partition("=")[0]
            if word.startswith("-") and name not in known:
                self._leave(f"{name}: {unknown(name, _flags(self))}")

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            raise _Missing(message)
        self._leave(message)

    def _leave(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(map(str, action.choices or ()))
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            raise argparse.ArgumentError(action, f"there is no {value!r}; " + (
                f"did you mean {near[0]!r}?" if near else
                f"there are {('; ' if any(',' in choice for choice in choices) else ', ').join(choices)}"))


def _flags(parser: argparse.ArgumentParser) -> Iterable[str]:
    """Its own and those of its commands."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _flags(command)
