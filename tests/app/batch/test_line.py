"""A line of the input, and what is counted of its reply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire.app.batch.input_file import InputFile
from quire.app.batch.line import BadLine, Task, parse, replied

TASK = Task(1, "a", "/v1/responses", b"{}")


def line(url: str) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": {}}).encode()


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/tokenize", "/v1/models/a.b-c_d", "/administrators"])
def test_a_url_is_a_path_of_the_server(url: str) -> None:
    assert parse(line(url), 1) == Task(1, "a", url, b"{}")


@pytest.mark.parametrize("url", ["/admin", "/admin/keys", "/v1/../admin/keys", "/./admin", "//admin", "/v1//x", "/",
                                 "v1/x", "/v1/x/", "/v1/x?y=1", "http://x/v1/x", "/" + "x" * 200])
def test_no_path_leads_elsewhere(url: str) -> None:
    found = parse(line(url), 1)
    assert isinstance(found, BadLine) and found.message.startswith("url must be a path")


@pytest.mark.parametrize("usage", [
    {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
    {"input_tokens": 1, "cache_read_input_tokens": 4, "output_tokens": 2},
])
def test_tokens_are_counted_whatever_an_api_calls_them(usage: dict[str, Any]) -> None:
    result = replied(TASK, 200, "r", json.dumps({"usage": usage}).encode())
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, 2) and not result.failed


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    for first, found in ((line("/tokenize"), [1, 2]), (b"", [2])):
        path.write_bytes(b"\xef\xbb\xbf" + first + b"\n" + line("/tokenize") + b"\n")
        file = InputFile(str(path))
        requests = list(file.requests())
        file.close()
        assert [request.number for request in requests] == found
        assert all(isinstance(request, Task) for request in requests)
