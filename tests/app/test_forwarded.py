"""Whose word about the client is believed, and how far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from quire.app.middleware.forwarded import ForwardedMiddleware
from quire.app.settings import ServeSettings

PROXIES = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]


async def seen(peer: str | None, *forwarded: str, proto: str = "https", proxies: list[str] | None = None) -> Scope:
    """The scope as the application sees it."""
    found: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(scope)

    async def nothing(*_: object) -> None:
        raise AssertionError("only the scope is looked at")

    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded] + [(b"x-forwarded-proto", proto.encode())]
    scope = {"type": "http", "scheme": "http", "client": peer and (peer, 5), "headers": headers}
    await ForwardedMiddleware(app, PROXIES if proxies is None else proxies)(scope, nothing, nothing)
    return found[0]


@pytest.mark.parametrize(("peer", "forwarded", "client"), [
    ("10.1.1.1", ["203.0.113.9"], "203.0.113.9"),
    ("10.1.1.1", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # what stands to the left the client may have written
    ("10.1.1.1", ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
    ("10.1.1.1", ["203.0.113.9, 10.2.2.2, 192.0.2.7"], "203.0.113.9"),  # through three proxies of ours
    ("10.1.1.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),  # a client in our own network
    ("10.1.1.1", ["203.0.113.9:4711"], "203.0.113.9"),
    ("10.1.1.1", ["[2001:db9::1]:4711"], "2001:db9::1"),
    ("2001:db8::5", ["2001:db9::1"], "2001:db9::1"),
    ("::ffff:10.1.1.1", ["203.0.113.9"], "203.0.113.9"),
    ("10.1.1.1", ["unknown"], "10.1.1.1"),
    ("10.1.1.1", ["198.51.100.1, _hidden, 10.2.2.2"], "10.2.2.2"),
    ("10.1.1.1", [""], "10.1.1.1"),
    ("10.1.1.1", [], "10.1.1.1"),
    ("203.0.113.1", ["198.51.100.1"], "203.0.113.1"),  # no proxy of ours
    ("192.0.2.8", ["198.51.100.1"], "192.0.2.8"),
])
async def test_the_client_is_the_last_that_is_no_proxy(peer: str, forwarded: list[str], client: str) -> None:
    assert (await seen(peer, *forwarded))["client"][0] == client


async def test_the_scheme_is_taken_from_proxies_only() -> None:
    assert (await seen("10.1.1.1"))["scheme"] == "https"
    assert (await seen("10.1.1.1", proto="javascript"))["scheme"] == "http"
    assert (await seen("203.0.113.1"))["scheme"] == "http"


async def test_peers_of_unix_sockets_are_believed_where_asked_for() -> None:
    assert (await seen(None, "203.0.113.9", proxies=["unix"]))["client"] == ("203.0.113.9", 0)
    assert (await seen(None, "203.0.113.9"))["client"] is None
    assert (await seen("10.1.1.1", "203.0.113.9", proxies=["unix"]))["client"] == ("10.1.1.1", 5)


async def test_nobody_is_believed_by_default() -> None:
    assert (await seen("127.0.0.1", "203.0.113.9", proxies=[]))["client"] == ("127.0.0.1", 5)


@given(st.lists(st.text(st.characters(max_codepoint=127)), max_size=4))
async def test_nothing_that_a_proxy_passes_on_breaks_a_request(forwarded: list[str]) -> None:
    assert (await seen("10.1.1.1", *forwarded))["client"] is not None


@pytest.mark.parametrize("proxy", ["*", "10.0.0.1/8", "proxy.example", ""])
def test_what_names_no_proxy_is_refused(proxy: str) -> None:
    assert any(problem.startswith(f"--forwarded-allow-ips: {proxy!r}")
               for problem in ServeSettings(forwarded_allow_ips=[proxy]).problems())
    assert not any("forwarded" in problem
                   for problem in ServeSettings(forwarded_allow_ips=[*PROXIES, "unix"]).problems())
