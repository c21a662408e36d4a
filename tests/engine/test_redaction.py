"""Secrets are masked wherever in a log line they are; what is no secret stays as it was."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from quire.engine.logs import configure_logging
from quire.engine.redaction import redact, redacted_text

ALPHABET = string.ascii_letters + string.digits + "_-"
secrets = st.text(ALPHABET, min_size=43, max_size=43).map(lambda rest: "quire-" + rest)
around = st.text(max_size=20)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner)
                        | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)


@given(st.data(), secrets, around, around)
def test_a_key_is_masked_wherever_it_is(data: st.DataObject, secret: str, before: str, after: str) -> None:
    # What follows the key in its own alphabet is taken for a part of it.
    text = f"{before}{secret} {after}"
    value = data.draw(nested(st.just(text) | plain))
    event = redact(None, "info", {"event": text, "value": value, "exception": ValueError(text),
                                  secret: 1, "bytes": text.encode("utf-8", "replace")} | {"in_key": {secret: 1}})
    event.pop(secret)  # field names are ours
    assert secret not in repr(event)
    json.dumps(event)


@given(st.text(ALPHABET + "+/=.~", min_size=1, max_size=60), st.sampled_from([
    "Bearer {}", "bearer   {}", "Authorization: Bearer {}", "authorization: Basic {}", "authorization={}",
    "{{'authorization': '{}'}}", "[(b'authorization', b'Bearer {}')]", '{{"Authorization":"Bearer {}"}}',
    "x-api-key: {}", "[(b'x-api-key', b'{}')]"]))
def test_an_authorization_header_is_masked(token: str, form: str) -> None:
    token = "T0" + token + "0T"
    assert token not in redacted_text(form.format(token))
    assert redacted_text(form.format(token)).startswith(form[:4].replace("{{", "{"))


@given(nested(st.sampled_from(["request", "/v1/chat/completions", "quire-7d9f8b6c5d-x2x4z", "task-12", "", "naïve\n"])
              | plain))
def test_the_rest_stays_as_it_was(value: Any) -> None:
    def as_json(v: Any) -> str:
        return json.dumps(v)

    assert as_json(redact(None, "info", {"value": value})["value"]) == as_json(value)


def test_lines_are_json_without_newlines_or_secrets_also_with_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    secret = "quire-" + "x" * 43
    configuration = structlog.get_config()
    try:
        configure_logging("info")
        log = structlog.get_logger("test")
        try:
            raise ValueError(f"cannot use {secret}")
        except ValueError:
            log.exception("it\nfailed", header={"authorization": "Basic abc"}, api_key="k", path="/a\r\n{b}")
    finally:
        structlog.configure(**configuration)
    [line] = capfd.readouterr().err.splitlines()
    said = json.loads(line)
    assert secret not in line
    assert "ValueError: cannot use quire-***" in said["exception"]
    assert said["header"] == {"authorization": "***"}
    assert said["api_key"] == "***"
    assert said["path"] == "/a\r\n{b}"
