"""The server behind a real nginx: nothing is smuggled past it, and streams come through as they are made."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.nginx import Nginx, nginx_before
from tests.e2e.server import KEY, Server, until
from tests.http_corpus import REFUSED, SMUGGLED, TAKEN
from tests.raw_http import send

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (apt-get install nginx)")


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx_before(server.url.removeprefix("http://"), tmp_path_factory.mktemp("nginx")) as nginx:
        yield nginx


def test_no_request_reaches_the_server_that_the_proxy_did_not_see(proxy: Nginx, server: Server) -> None:
    for number, case in enumerate(REFUSED + TAKEN):
        smuggled = SMUGGLED.replace(b"/smuggled", b"/smuggled-%d" % number)
        answer = send(proxy.address, case.request + smuggled, tls=proxy.trust, quiet_s=0.05)
        assert not {500, 502, 504}.intersection(answer.statuses), (case.name, answer.raw[:300])
    assert httpx.get(proxy.url + "/healthz", verify=proxy.trust).status_code == 200
    until(lambda: "/healthz" in proxy.paths_seen()[-1:])
    seen_by_us = {event["path"] for event in server.events("request") if "smuggled" in event["path"]}
    assert seen_by_us, "a request that the proxy takes for two is two"
    assert seen_by_us <= set(proxy.paths_seen())


def test_a_stream_arrives_while_it_is_made(proxy: Nginx) -> None:
    with httpx.Client(verify=proxy.trust) as http, openai.OpenAI(
            base_url=f"{proxy.url}/v1", api_key=KEY, http_client=http, max_retries=0) as client:
        begun = time.monotonic()
        arrivals = [time.monotonic() - begun for _ in client.completions.create(
            model="smollm2-135m-instruct", prompt="Once upon a time", max_tokens=60, stream=True,
            extra_body={"min_tokens": 60})]
    assert len(arrivals) >= 30
    assert arrivals[0] < 0.6 * arrivals[-1]


def test_a_proxy_that_nobody_named_is_not_believed(proxy: Nginx, server: Server) -> None:
    reply = httpx.get(proxy.url + "/v1/models", verify=proxy.trust, headers={
        "authorization": f"Bearer {KEY}", "x-forwarded-for": "203.0.113.9", "x-request-id": "not-believed"})
    assert reply.status_code == 200
    assert _client_of(server, "not-believed") == "127.0.0.1"


def _client_of(server: Server, request_id: str) -> str:
    def found() -> list[str]:
        return [event["client"] for event in server.events("request") if event["request_id"] == request_id]

    until(found)
    return found()[0]
