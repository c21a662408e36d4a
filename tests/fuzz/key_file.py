"""The file of named keys, in YAML or in JSON: the input's first byte says which, `j` for JSON."""

from __future__ import annotations

import json
from contextlib import suppress

from quire.app.keys.key_file import parse_keys
from quire.engine.errors import ConfigError

_KEY = {"name": "team-a", "sha256": "0" * 64, "created": "2026-01-31T23:59:59Z"}
_ALL = {**_KEY, "name": "b", "sha256": "a" * 64, "not_after": "2027-12-31T23:59:59Z", "models": ["m", "n"],
        "priority": -1, "weight": 0.5, "requests_per_minute": 60, "tokens_per_minute": 10**6, "max_concurrent": 4,
        "admin": True, "prefix_group": "g"}


def seeds() -> list[bytes]:
    texts = [json.dumps(keys) for keys in ([], [_KEY], [_KEY, _ALL])]
    yaml = ["- name: a\n  sha256: " + "f" * 64 + "\n  created: 2026-01-31T23:59:59Z\n  models: [m]\n",
            "- &a {name: a, weight: 1.5}\n- <<: *a\n  0x10: 0o7\n- ? !!set {a}\n  : .inf\n"]
    return [*(f"j{text}".encode() for text in texts), *(f"y{text}".encode() for text in [*texts, *yaml])]


def target(data: bytes) -> None:
    with suppress(ConfigError):
        parse_keys(data[1:], "keys.json" if data[:1] == b"j" else "keys.yaml")
