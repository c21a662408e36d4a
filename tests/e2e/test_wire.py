"""Slow senders, broken requests and forwarded addresses at a whole server with short deadlines."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server import ANY_WEIGHTS, KEY, Server, serving, until
from tests.http_corpus import REFUSED, SMUGGLED
from tests.raw_http import connect, receive, send

HEADER_TIMEOUT_S, BODY_TIMEOUT_S = 2, 3
MARGIN_S = 10  # for a busy machine
NUM_SLOW = 60
needs_slowhttptest = pytest.mark.skipif(shutil.which("slowhttptest") is None,
                                        reason="slowhttptest is not installed (apt-get install slowhttptest)")


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    with serving("--host", "127.0.0.1", "--allow-public-without-key", "--header-timeout", str(HEADER_TIMEOUT_S),
                 "--max-body-bytes", "1M", "--body-timeout", str(BODY_TIMEOUT_S),
                 "--forwarded-allow-ips", "127.0.0.0/8", *ANY_WEIGHTS, key=None) as server:
        yield server


def address(server: Server) -> tuple[str, int]:
    return "127.0.0.1", int(server.url.rsplit(":", 1)[1])


def refused(server: Server, reason: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    counts = f'quire:requests_rejected_total{{reason="{reason}"}} '
    return next(float(line.removeprefix(counts)) for line in lines if line.startswith(counts))


def test_broken_requests_are_refused_and_nothing_follows_them(impatient: Server) -> None:
    for case in REFUSED:
        answer = send(address(impatient), case.request + SMUGGLED)
        assert answer.statuses == [case.status], (case.name, answer.raw)
        assert answer.closed, case.name
    assert httpx.get(impatient.url + "/healthz").status_code == 200
    assert not any(event["path"] == "/smuggled" for event in impatient.events("request"))
    assert refused(impatient, "malformed") > 50
    until(lambda: sum(event["count"] for event in impatient.events("refusals not logged"))
          + len(impatient.events("request refused")) >= len(REFUSED))


@needs_slowhttptest
@pytest.mark.parametrize(("mode", "deadline_s"), [("-H", HEADER_TIMEOUT_S), ("-B", BODY_TIMEOUT_S)],
                         ids=["slow heads", "slow bodies"])
def test_slow_senders_are_cut_while_others_are_served(impatient: Server, mode: str, deadline_s: int) -> None:
    begun = time.monotonic()
    attack = subprocess.Popen(
        ["slowhttptest", mode, "-c", str(NUM_SLOW), "-r", str(NUM_SLOW), "-i", "1", "-x", "3", "-s", "8192", "-p", "5",
         "-l", "60", "-f", "application/json", "-u", impatient.url + "/v1/completions"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        with impatient.client() as client:
            while attack.poll() is None:
                assert client.completions.create(model="smollm2-135m-instruct", prompt="Once", max_tokens=3).choices
                time.sleep(0.3)
    finally:
        attack.kill()
    told = attack.communicate()[0]
    assert "No open connections left" in told, told
    assert deadline_s - 1 < time.monotonic() - begun < deadline_s + MARGIN_S


def test_a_slow_body_is_told_so(impatient: Server) -> None:
    with connect(address(impatient)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                       b"Content-Length: 50\r\n\r\n{")
        answer = receive(client, wait_s=BODY_TIMEOUT_S + 10)
    assert answer.statuses == [408]
    assert answer.closed
    assert answer.replies[0].error["type"] == "TimeoutError"
    assert refused(impatient, "body_timeout") >= 1


def test_a_body_that_is_too_large_is_refused_in_words(impatient: Server) -> None:
    """Not by a reset, which the client would take for a fault of the network."""
    with impatient.client() as client, pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="smollm2-135m-instruct", prompt="a" * (8 << 20), max_tokens=1)
    assert caught.value.status_code == 413


def test_large_bodies_of_curl_wait_for_continue(impatient: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed (apt-get install curl)")
    body = tmp_path / "body.json"
    body.write_text('{"model": "smollm2-135m-instruct", "max_tokens": 1, "prompt": "Once"' + " " * 900_000 + "}")
    told = subprocess.run(
        ["curl", "-sv", "-H", "Expect: 100-continue", "-H", f"Authorization: Bearer {KEY}", "-H",
         "Content-Type: application/json", "--data-binary", f"@{body}", impatient.url + "/v1/completions"],
        capture_output=True, text=True, timeout=60)
    assert "HTTP/1.1 100 Continue" in told.stderr
    assert "HTTP/1.1 200 OK" in told.stderr


def test_a_named_proxy_is_believed_up_to_its_own_word(impatient: Server) -> None:
    httpx.get(impatient.url + "/v1/models", headers={
        "authorization": f"Bearer {KEY}", "x-request-id": "forwarded", "x-forwarded-for": "198.51.100.1, 203.0.113.9"})
    until(lambda: [event for event in impatient.events("request") if event["request_id"] == "forwarded"])
    found = next(event for event in impatient.events("request") if event["request_id"] == "forwarded")
    assert found["client"] == "203.0.113.9"
