"""The OpenAPI document beside the real server, and what schemathesis makes of it in a few seconds."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.api.run import attack
from tests.e2e.server import Server


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: Server) -> None:
    """What operators may do is left out, since other tests share the server; `make check-api` has it."""
    done = attack(server.url, "--phases", "fuzzing", "-n", "3", "--seed", "1", "--no-shrink",
                  "--exclude-tag", "operation")
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found and found[1] == found[2] and int(found[1]) > 50, done.stdout


def test_anyone_may_read_what_the_api_is(server: Server) -> None:
    assert httpx.get(server.url + "/docs").status_code == 200
    document = httpx.get(server.url + "/openapi.json")
    assert document.json()["openapi"] == "3.1.0"
    # Two workers make the same document of their own.
    assert {httpx.get(server.url + "/openapi.json").headers["etag"] for _ in range(20)} == {document.headers["etag"]}
