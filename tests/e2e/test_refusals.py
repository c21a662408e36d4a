"""A full server refuses so that clients cope: OpenAI's SDK with its own retries; deadlines; bodies that are none."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from quire.app.keys.key import Key, digest_of
from quire.app.keys.key_file import write_key_file
from tests.e2e.server import KEY, Server, serving, until

AUTHORIZATION = {"authorization": f"Bearer {KEY}"}
SHORT: dict[str, Any] = {"model": "smollm2-135m-instruct", "prompt": "Once", "max_tokens": 2}


SECRETS = {"rare": "rare-key-rare-key-rare-key", "single": "single-key-single-key-single"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sample runs, one waits, the next is refused."""
    path = str(tmp_path_factory.mktemp("keys") / "keys.yaml")
    limits: dict[str, dict[str, Any]] = {
        "rare": {"requests_per_minute": 3, "tokens_per_minute": 100_000}, "single": {"max_concurrent": 1}}
    write_key_file(path, [Key(name=name, sha256=digest_of(secret), created=datetime.now(timezone.utc), **limits[name])
                          for name, secret in SECRETS.items()])
    with serving("--max-num-seqs", "1", "--max-queued-requests", "1", "--sse-ping-interval", "0.7",
                 "--max-body-bytes", "100k", "--api-key-file", path) as server:
        yield server


@pytest.fixture
def sdk(small: Server) -> Iterator[Callable[..., openai.OpenAI]]:
    with contextlib.ExitStack() as opened:
        yield lambda **options: opened.enter_context(small.client(**options))


@contextlib.contextmanager
def occupied(server: Server, seconds: float = 30.0, key: str = KEY) -> Iterator[None]:
    """The only place to run is taken, for `seconds` or until left."""
    with httpx.stream("POST", f"{server.url}/v1/completions", timeout=60, json={
            "prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": True, "stream": True},
                      headers={"authorization": f"Bearer {key}"}) as reply:
        lines = reply.iter_lines()  # held: an iterator that is dropped closes the reply
        next(lines)
        timer = threading.Timer(seconds, reply.close)
        timer.start()
        yield
        timer.cancel()


@contextlib.contextmanager
def full(server: Server, seconds: float = 30.0) -> Iterator[None]:
    """And one waits."""
    with occupied(server, seconds):
        waiting = threading.Thread(target=lambda: post(server, SHORT))
        waiting.start()
        until(lambda: server.metric("vllm:num_requests_waiting") == 1)
        yield
    waiting.join(60)


def post(server: Server, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60, headers=AUTHORIZATION | {
        name.replace("_", "-"): value for name, value in headers.items()})


def test_without_retries_the_sdk_raises_our_message(small: Server, sdk: Callable[..., openai.OpenAI]) -> None:
    with full(small), pytest.raises(openai.InternalServerError, match="max-queued-requests is 1") as caught:
        sdk().completions.create(**SHORT)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert float(caught.value.response.headers["retry-after-ms"]) > 0
    until(lambda: small.metric("vllm:num_requests_running") == 0, 60)


def test_the_sdks_own_retries_succeed_once_there_is_room(small: Server, sdk: Callable[..., openai.OpenAI]) -> None:
    with full(small, seconds=2.0):
        began = time.monotonic()
        reply = sdk().with_options(max_retries=10).completions.create(**SHORT)
        assert reply.choices[0].text
        assert time.monotonic() - began > 0.5  # it was refused first
    assert small.metric("quire:requests_rejected_total") >= 1


def test_a_keys_own_limit_is_429_and_says_where_it_stands(small: Server, sdk: Callable[..., openai.OpenAI]) -> None:
    client = sdk(api_key=SECRETS["rare"])
    for remaining in ("2", "1", "0"):
        headers = client.completions.with_raw_response.create(**SHORT).headers
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-remaining-requests"] == remaining
        # What it took is back after some milliseconds.
        assert 90_000 < int(headers["x-ratelimit-remaining-tokens"]) <= 100_000
        assert headers["x-ratelimit-reset-requests"].endswith("s")
    waits = []
    for _ in range(20):  # the first asks the engine, the worker knows by then
        with pytest.raises(openai.RateLimitError, match="3 requests a minute") as caught:
            client.completions.create(**SHORT)
        assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        waits.append(int(caught.value.response.headers["retry-after-ms"]))
    assert 0 < waits[-1] < waits[0] <= 20_000
    assert sdk().completions.create(**SHORT).choices[0].text  # another key is not held up


def test_the_sdks_own_retries_outlast_429(small: Server, sdk: Callable[..., openai.OpenAI]) -> None:
    client = sdk(api_key=SECRETS["single"])
    with occupied(small, 2.0, SECRETS["single"]):
        with pytest.raises(openai.RateLimitError, match="may have 1"):
            client.completions.create(**SHORT)
        assert client.with_options(max_retries=10).completions.create(**SHORT).choices[0].text


def test_refused_uploads_leave_the_connection_in_order(small: Server) -> None:
    """The worker answers before it read the body; what is left of it must not be taken for a request."""
    address = urlsplit(small.url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    headers = AUTHORIZATION | {"content-type": "application/json"}
    with full(small):
        for _ in range(4):
            connection.request("POST", "/v1/completions", json.dumps(SHORT | {"prompt": "x " * 40_000}), headers)
            reply = connection.getresponse()
            assert reply.status in (503, 400)  # 400: the door opened for a moment, and it is too long
            assert json.loads(reply.read())["error"]["message"]
            connection.request("GET", "/healthz")
            reply = connection.getresponse()
            assert reply.status == 200
            reply.read()
    connection.close()


def test_a_queue_timeout_is_503_and_leaves_the_queue(small: Server) -> None:
    with occupied(small):
        for stream in (False, True):
            # Before the first comment is due: after it the head is sent.
            reply = post(small, SHORT | {"stream": stream}, x_queue_timeout="0.2")
            assert reply.status_code == 503, reply.text
            assert int(reply.headers["retry-after"]) >= 1
        until(lambda: small.metric("vllm:num_requests_waiting") == 0)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized_whole(small: Server) -> None:
    reply = post(small, SHORT | {"prompt": "1 " * 40_000})
    assert reply.status_code == 400
    assert "at least 64512 input tokens" in reply.json()["error"]["message"]  # of the 65536 that its first piece has


def test_deadlines_end_requests_in_the_engine_too(small: Server, sdk: Callable[..., openai.OpenAI]) -> None:
    with occupied(small):
        reply = post(small, SHORT, x_ttft_timeout="0.5")
        assert reply.status_code == 504
        assert "x-ttft-timeout" in reply.json()["error"]["message"]
        until(lambda: small.metric("vllm:num_requests_waiting") == 0)
    long = SHORT | {"max_tokens": 1000, "ignore_eos": True}
    with pytest.raises(openai.InternalServerError, match="x-request-timeout") as caught:
        # With retries: the reply says that there is no use in them.
        sdk().with_options(max_retries=5).completions.create(
            **SHORT | {"max_tokens": 1000}, extra_body={"ignore_eos": True}, extra_headers={"x-request-timeout": "1"})
    assert caught.value.status_code == 504
    reply = post(small, long | {"stream": True}, x_request_timeout="1")
    events = [event for event in reply.text.split("\n\n") if event.startswith("data: ")]
    assert reply.status_code == 200
    assert json.loads(events[-2][6:])["error"]["code"] == 504
    assert events[-1] == "data: [DONE]"
    until(lambda: small.metric("vllm:num_requests_running") == 0)
    assert post(small, SHORT, x_request_timeout="soon").status_code == 400


def test_the_sdk_does_not_see_comments(small: Server, sdk: Callable[..., openai.OpenAI]) -> None:
    with occupied(small, seconds=2.0), sdk().completions.create(
            **SHORT | {"stream": True}, extra_body={"ignore_eos": True}) as stream:
        chunks = list(stream)
    assert len(chunks) == 2
    with occupied(small, seconds=2.0):
        reply = post(small, SHORT | {"stream": True})
    assert reply.text.startswith(": ping\n\n: ping\n\n")
    assert reply.text.endswith("data: [DONE]\n\n")


def test_the_terminal_clients_do_not_see_comments(small: Server) -> None:
    for command in ("chat", "complete"):
        with occupied(small, seconds=2.0):
            told = subprocess.run(
                [sys.executable, "-m", "quire", command, "--url", small.url + "/v1", "--api-key", KEY, "--max-tokens",
                 "5", "--temperature", "0", "Tell me a story"], capture_output=True, text=True, timeout=60)
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout.strip()


def test_a_failure_midway_is_the_sdks_error(small: Server, sdk: Callable[..., openai.OpenAI]) -> None:
    with sdk().completions.create(
            **SHORT | {"max_tokens": 1000, "stream": True}, extra_body={"ignore_eos": True},
            extra_headers={"x-request-timeout": "1"}) as stream, \
            pytest.raises(openai.APIError, match="did not finish within 1 seconds"):
        list(stream)


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


@pytest.mark.parametrize(("content", "status"), [
    (b" " * 200_000, 413), (pieces(200_000), 413), (b"[" * 90_000, 400), (b'{"a":' * 18_000, 400),
    (b'{"prompt":"\\ud800"}', 400), (b'{"prompt":"a","temperature":NaN}', 400), (b"\x00", 400),
    (b'{"prompt":"a","n":' + b"9" * 4000 + b"}", 400), (b'{"prompt":[' + b"9," * 40_000 + b"9]}", 400),
    (b'{"prompt":"' + b"x" * 95_000 + b'"}', 400),
], ids=["announced", "chunked", "lists", "objects", "surrogate", "nan", "nul", "huge-int", "many-ids", "long-text"])
def test_bodies_that_are_no_requests_are_refused(small: Server, content: Any, status: int) -> None:
    reply = httpx.post(f"{small.url}/v1/completions", content=content, timeout=20,
                       headers=AUTHORIZATION | {"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["code"] == status
    assert small.get("/readyz").status_code == 200
