"""The file of named keys: read with every problem told, written whole or not at all, by one writer at a time.

A list of `Key`s in YAML, or in JSON where the name ends in .json. Called at start, by the ring when the file changed,
and by `quire keys`. It never quotes a value that may be a secret put into the wrong field.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from quire.app import strict_yaml
from quire.app.keys.key import Key
from quire.engine.errors import ConfigError

RESERVED_NAME = re.compile(r"key-[0-9a-f]{8}")
MAX_BYTES = 2**20  # some 3000 keys
_TIME = "must be a time with its zone, as 2027-12-31T23:59:59Z"
_HINTS = {
    "name": "must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
    "sha256": "must be the secret's SHA-256 in 64 digits of 0-9 and a-f (quire keys create writes it)",
    "created": _TIME,
    "not_after": _TIME,
    "models": "must be a list of model names, or left out for all",
}
_FIELDS = {field.name: field for field in msgspec.structs.fields(Key)}


def load_key_file(path: str) -> list[Key]:
    """Raises ConfigError with every problem, each with the file, the key's name and the field."""
    return parse_keys(_read(path), path)


def parse_keys(content: bytes, path: str) -> list[Key]:
    """`path` says whose content it is, and by its ending which form it has. Raises as load_key_file."""
    try:
        entries = _decode(content.decode(), path)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not {_form(path)}: {_where(error)}") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: must hold a list of keys; [] is one without any")
    problems: list[str] = []
    keys = [key for i, entry in enumerate(entries, 1) if (key := _key(entry, f"{path}: {_label(entry, i)}", problems))]
    for field in ("name", "sha256"):
        for value, times in Counter(getattr(key, field) for key in keys).items():
            if times > 1:
                names = ", ".join(key.name for key in keys if getattr(key, field) == value)
                problems.append(f"{path}: {field}: {times} keys have the same ({names}); each needs its own")
    if problems:
        raise ConfigError(problems)
    return keys


def key_of_fields(fields: dict[str, Any]) -> Key:
    """Checked as an entry of a file is. Raises ConfigError."""
    problems: list[str] = []
    key = _key(fields, _label(fields, 1), problems)
    if key is None:
        raise ConfigError(problems)
    return key


def write_key_file(path: str, keys: list[Key]) -> None:
    """Replace the file; its owner and permissions stay, a new one is its owner's alone. Raises OSError."""
    path = os.path.realpath(path)  # a link stays one
    entries = [msgspec.to_builtins(key) for key in keys]
    text = json.dumps(entries, indent=2) + "\n" if path.endswith(".json") else yaml.safe_dump(entries, sort_keys=False)
    descriptor, pending = tempfile.mkstemp(dir=os.path.dirname(path), prefix=os.path.basename(path) + ".")  # 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            with contextlib.suppress(FileNotFoundError):
                before = os.stat(path)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                fresh = os.fstat(descriptor)
                # The server that reads it may be another user. In a sandbox no owner may be set, not even the same.
                if (before.st_uid, before.st_gid) != (fresh.st_uid, fresh.st_gid):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(pending, path)
    except BaseException:
        os.unlink(pending)
        raise
    with _directory(path) as directory:
        os.fsync(directory)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold off other writers. The lock is on the directory, since the file itself is replaced. Raises OSError."""
    with _directory(os.path.realpath(path)) as directory:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield directory
    finally:
        os.close(directory)


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: is not a file")
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(f"{path}: has mode {stat.S_IMODE(mode):04o}, so that others may read or change it; take that "
                          "away (chmod 600, or 640)")
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes")
    return content


# From text to entries


def _decode(text: str, path: str) -> Any:
    if path.endswith(".json"):
        return json.loads(text, object_pairs_hook=_without_twins)
    return strict_yaml.load(text)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise ValueError(f"the field {name[:40]} is there {times} times in one key")
    return dict(pairs)


def _form(path: str) -> str:
    return "JSON" if path.endswith(".json") else "YAML"


def _where(error: Exception) -> str:
    """What is wrong, and on which line, without the line itself."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: {error.msg}"
    return str(error) if type(error) is ValueError else type(error).__name__


# From an entry to a key


def _label(entry: Any, number: int) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"key {name[:64]!r}" if isinstance(name, str) else f"entry {number}"


def _key(entry: Any, label: str, problems: list[str]) -> Key | None:
    """The entry as a key; or None, and what is wrong with it among `problems`."""
    if not isinstance(entry, dict):
        problems.append(f"{label}: must be a mapping of fields")
        return None
    found = [_unknown(name) for name in entry if name not in _FIELDS]
    values = {}
    for name, field in _FIELDS.items():
        if name in entry:
            try:
                values[name] = msgspec.convert(entry[name], field.type)
                msgspec.json.encode(values[name])  # JSON and YAML can spell half a character, which is no text
            except (msgspec.ValidationError, UnicodeEncodeError) as error:
                found.append(f"{name}: {_HINTS.get(name, str(error))}")
        elif field.required:
            found.append(f"{name}: is missing; it {_HINTS[name]}")
    if not found and RESERVED_NAME.fullmatch(values["name"]):
        found.append("name: key- and 8 digits is how keys without a name are shown; take another")
    problems += [f"{label}: {problem}" for problem in found]
    return None if found else Key(**values)


def _unknown(name: Any) -> str:
    if not isinstance(name, str):
        return f"the name of a field must be text, and one is of type {type(name).__name__}"
    name = name[:40]
    close = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"{name}: there is no such field" + (f"; did you mean {close[0]}?" if close else "")
