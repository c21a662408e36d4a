"""`quire keys create | list | revoke`: the key file without an editor.

A secret is shown once, on standard output and nowhere else; the file keeps its digest. Running servers notice.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec

from quire.app.keys.key import Key, digest_of, new_secret
from quire.app.keys.key_file import key_of_fields, load_key_file, locked, write_key_file
from quire.app.telemetry.audit import AuditError, AuditLog
from quire.engine.errors import ConfigError

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="keys_command", metavar="COMMAND", required=True)
    create = commands.add_parser("create", help="make a key; its secret is shown this once")
    create.add_argument("name", metavar="NAME", help="how logs and metrics call it")
    create.add_argument("--expires", metavar="WHEN", help="90d, 12h, 4w, or a time as 2027-12-31T23:59:59Z")
    create.add_argument("--models", nargs="+", metavar="MODEL", help="models that it may use; unset: all")
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="0: no limit")
    create.add_argument("--tokens-per-minute", type=int, metavar="N", help="of prompts and outputs; 0: no limit")
    create.add_argument("--max-concurrent", type=int, metavar="N", help="unfinished requests; 0: no limit")
    create.add_argument("--priority", type=int, metavar="P",
                        help="of its requests, which may ask for a later one; lower runs first [0]")
    create.add_argument("--weight", type=float, metavar="W", help="its share among keys of one priority [1]")
    create.add_argument("--prefix-group", metavar="NAME",
                        help="keys of one group find each other's cached prompts; unset: only its own")
    create.add_argument("--admin", action="store_true", default=None, help="it may use /admin and /metrics")
    listing = commands.add_parser("list", help="names, limits and times")
    revoke = commands.add_parser("revoke", help="take a key out; running servers refuse it within a second or two")
    revoke.add_argument("name", metavar="NAME")
    for command in (create, listing, revoke):
        command.add_argument("--file", metavar="FILE", default=os.environ.get("QUIRE_API_KEY_FILE"),
                             help="the key file (quire serve --api-key-file); also QUIRE_API_KEY_FILE")
    for command in (create, revoke):
        command.add_argument("--audit-log", metavar="FILE", default=os.environ.get("QUIRE_AUDIT_LOG"),
                             help="gets a line; also QUIRE_AUDIT_LOG")


def main(options: argparse.Namespace) -> int:
    """Returns the exit code: 2 where nothing was done, with the reasons on standard error."""
    try:
        if not options.file:
            raise ConfigError("--file: which key file? Or set QUIRE_API_KEY_FILE")
        {"create": _create, "list": _list, "revoke": _revoke}[options.keys_command](options)
        return 0
    except ConfigError as error:
        problems = error.problems
    except AuditError as error:
        problems = [str(error)]
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        problems = [f"{options.file}: cannot be written: {where}{error.strerror}"]
    for problem in problems:
        print(f"quire keys: {problem}", file=sys.stderr)
    return 2


def _create(options: argparse.Namespace) -> None:
    secret = new_secret()
    asked = {"models": options.models, "requests_per_minute": options.requests_per_minute,
             "tokens_per_minute": options.tokens_per_minute, "max_concurrent": options.max_concurrent,
             "priority": options.priority, "weight": options.weight, "admin": options.admin,
             "not_after": None if options.expires is None else _time(options.expires)}
    key = key_of_fields({"name": options.name, "sha256": digest_of(secret),
                         "created": datetime.now(timezone.utc).replace(microsecond=0),
                         **{name: value for name, value in asked.items() if value is not None}})
    with locked(options.file):
        keys = load_key_file(options.file) if os.path.exists(options.file) else []
        if any(other.name == key.name for other in keys):
            raise ConfigError(f"{options.file}: there is a key {key.name} already; revoke it, or take another name")
        _audit(options, "keys create", key.name)
        write_key_file(options.file, [*keys, key])
    print(f"Key {key.name} is in {options.file}. Its secret is shown this once:", file=sys.stderr)
    print(secret, flush=True)


def _revoke(options: argparse.Namespace) -> None:
    with locked(options.file):
        keys = load_key_file(options.file)
        left = [key for key in keys if key.name != options.name]
        if len(left) == len(keys):
            raise ConfigError(f"{options.file}: there is no key {options.name}")
        _audit(options, "keys revoke", options.name)
        write_key_file(options.file, left)
    print(f"Key {options.name} is out of {options.file}.", file=sys.stderr)


def _audit(options: argparse.Namespace, action: str, name: str) -> None:
    """Before the change. Raises AuditError."""
    AuditLog(options.audit_log).write(action, "begun", name=name, file=options.file, uid=os.getuid())


def _list(options: argparse.Namespace) -> None:
    heads = ("NAME", "CREATED", "EXPIRES", "ADMIN", "MODELS", "PRIORITY", "WEIGHT", "REQ/MIN", "TOK/MIN", "CONCURRENT")
    rows = [heads, *(_row(key) for key in load_key_file(options.file))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def _row(key: Key) -> tuple[str, ...]:
    def day(time: datetime) -> str:
        return time.astimezone(timezone.utc).strftime("%Y-%m-%d")

    expires = "never" if key.not_after is None else f"{day(key.not_after)}{' (expired)' if key.expired else ''}"
    return (key.name, day(key.created), expires, "yes" if key.admin else "no", ",".join(key.models or ("all",)),
            "any" if key.priority is None else str(key.priority), f"{key.weight:g}",
            *(str(count or "-") for count in (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent)))


def _time(text: str) -> datetime:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    span = re.fullmatch(r"(\d{1,4})([hdw])", text)
    try:
        time: Any = now + int(span[1]) * _UNITS[span[2]] if span else msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        time = None
    if time is None or time.tzinfo is None:
        raise ConfigError(f"--expires: {text!r} is neither a span (90d, 12h, 4w) nor a time as 2027-12-31T23:59:59Z")
    if time <= now:
        raise ConfigError(f"--expires: {text} is over already")
    return time
