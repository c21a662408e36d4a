"""`quire top` reads the names that the real server writes."""

from __future__ import annotations

import re

import pytest

from quire.app.cli import main
from tests.e2e.server import KEY, Server


def test_every_figure_is_there_once_something_was_asked(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.client().completions.create(model="smollm2-135m-instruct", prompt="The sky is", max_tokens=8)
    assert main(["top", "--url", server.url, "--api-key", KEY, "--once", "--interval", "1.2"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1] == "ready"
    assert re.search(r"^quire  \S+  \S+  up .*\d s  http", shown)
    for title in ("running", "waiting", "KV cache in use", "tokens/s in", "tokens/s out", "answers/s"):
        assert re.search(rf"^{title} +[\d.,]+%?( |$)", shown, re.MULTILINE), shown
    assert re.search(r"^prefix cache hits +\d+%", shown, re.MULTILINE)
    for title in ("first token", "between tokens", "whole request"):
        row = re.search(rf"^{title}( +[\d.]+ m?s){{3}} +[\d,]+$", shown, re.MULTILINE)
        assert row, shown
    assert re.search(r"^key-\w+( +[\d,]+){3}$", shown, re.MULTILINE)
