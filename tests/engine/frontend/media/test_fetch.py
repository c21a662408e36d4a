"""Fetching from web servers that strangers chose: where it leads, and when it ends."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest
import trustme

from quire.engine.frontend.media.errors import BadImageError
from quire.engine.frontend.media.fetch import MAX_REDIRECTS, Fetcher, target_of
from tests.engine.frontend.media import web
from tests.engine.frontend.media.web import Web, redirect, reply

NAMED = "images.example"  # which the operator allows, so that it may be on loopback
IMAGE = b"\x89PNG and so on"
CRUMBS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n"


def fetcher(*answers: list[str], domains: tuple[str, ...] | None = (NAMED,), timeout_s: float = 5.0,
            max_bytes: int = 100_000) -> Fetcher:
    """Each resolution gets the next of `answers`, the last one forever."""
    left = [*(answers or (["127.0.0.1"],))]

    async def resolve(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return Fetcher(timeout_s, max_bytes, domains, resolve)


async def refused(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(BadImageError) as caught:
        await fetcher.fetch(url)
    return str(caught.value)


async def test_a_body_comes_whole_with_a_length_in_chunks_or_until_the_end() -> None:
    pages: dict[str, bytes | web.Answer] = {
        "/length": reply(IMAGE), "/end": b"HTTP/1.1 200 OK\r\n\r\n" + IMAGE,
        "/chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE),
        "/after-100": b"HTTP/1.1 103 Early Hints\r\n\r\n" + reply(IMAGE),
        "/slow": web.slowly(reply(IMAGE), 0.001),
        "/there": redirect("/length"), "/absolute": redirect("//images.example:PORT/length", 308)}
    async with Web(pages).serving() as server:
        pages["/absolute"] = redirect(f"//{NAMED}:{server.port}/length", 308)
        for path in pages:
            assert await fetcher().fetch(f"http://{NAMED}:{server.port}{path}#part") == IMAGE
    assert f"host: {NAMED}:{server.port}\r\n" in server.seen[0] and "authorization" not in server.seen[0]


async def test_what_a_server_does_wrong_is_said_without_its_words() -> None:
    pages: dict[str, bytes | web.Answer] = {
        "/404": reply(web.HTML, "404 Not Found"), "/500": reply(b"SECRET", "500 SECRET"), "/204": reply(b"", "204 No"),
        "/gzip": reply(IMAGE, "200 OK", "content-encoding: gzip"), "/cut": reply(IMAGE, length=1000),
        "/no-http": b"SSH-2.0-SECRET\r\n\r\n", "/nothing": b"",
        "/long-head": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000,
        "/announced": reply(b"", length=200_000), "/endless": web.endlessly, "/loop": redirect("/loop"),
        "/bad-length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "/to-file": redirect("file:///etc/passwd"),
        "/to-data": redirect("data:image/png;base64,AAAA"), "/to-gopher": redirect("gopher://x/"),
        "/to-userinfo": redirect("http://a:b@images.example/"), "/to-other": redirect("http://other.example/"),
        "/to-loopback": redirect("http://127.0.0.1/"), "/to-nothing": reply(b"", "302 Found"),
        "/to-no-url": redirect("http://[::1"),
        "/no-length": b"HTTP/1.1 200 OK\r\ncontent-length: %b\r\n\r\n" % (b"9" * 5000),
        "/interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000, "/crumbs": CRUMBS}
    said = {}
    async with Web(pages).serving() as server:
        for path in pages:
            said[path] = await refused(fetcher(), f"http://{NAMED}:{server.port}{path}")
    assert not [text for text in said.values() if "SECRET" in text or "passwd" in text]
    assert "cannot be read" in said["/to-no-url"] and "HTTP" in said["/no-length"]
    assert "again and again" in said["/interim"] and "in crumbs" in said["/crumbs"]
    assert "status 404" in said["/404"] and "status 204" in said["/204"] and "status 302" in said["/to-nothing"]
    assert "100000 bytes" in said["/announced"] and "100000 bytes" in said["/endless"]
    assert f"more than {MAX_REDIRECTS} times" in said["/loop"]
    assert all("must be http" in said[f"/to-{scheme}"] for scheme in ("file", "data", "gopher"))
    assert all("--allowed-media-domains" in said[path] for path in ("/to-other", "/to-loopback"))
    assert server.seen.count(server.seen[-1]) == 1


async def test_time_is_limited_wherever_it_goes() -> None:
    async def slow_name(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    pages: dict[str, bytes | web.Answer] = {
        "/silent": web.silently, "/head": web.slowly(reply(IMAGE), 0.05), "/loop": redirect("/loop"),
        "/body": web.slowly(b"HTTP/1.1 200 OK\r\n\r\n" + IMAGE * 100, 0.02)}
    async with Web(pages).serving() as server:
        for path in ("/silent", "/head", "/body"):
            began = time.monotonic()
            assert "within 0.2 s" in await refused(fetcher(timeout_s=0.2), f"http://{NAMED}:{server.port}{path}")
            assert time.monotonic() - began < 2
    assert "within 0.2 s" in await refused(Fetcher(0.2, 100, {NAMED}, slow_name), f"http://{NAMED}/")


@pytest.mark.parametrize("url", [
    "http://127.0.0.1:PORT/", "http://localhost:PORT/", "http://127.1:PORT/", "http://2130706433:PORT/",
    "http://0x7f000001:PORT/", "http://0177.0.0.1:PORT/", "http://[::1]:PORT/", "http://[::ffff:127.0.0.1]:PORT/",
    "http://0.0.0.0:PORT/", "http://127.0.0.1.:PORT/", "http://169.254.169.254/latest/meta-data/"])
async def test_loopback_is_not_reached_by_any_spelling(url: str) -> None:
    """With the system's own resolver, which reads them all."""
    async with Web({"/": reply(IMAGE)}).serving() as server:
        await refused(Fetcher(5.0, 1000), url.replace("PORT", str(server.port)))
    assert not server.seen


async def test_a_name_is_resolved_once_for_each_connection() -> None:
    """A name server that answers with a public address first, and with loopback next, gains nothing."""
    asked = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) > 1 else ["192.0.2.1"]  # which is nobody's

    async with Web({"/": reply(IMAGE)}).serving() as server:
        await refused(Fetcher(5.0, 1000, None, rebinding), f"http://rebinds.example:{server.port}/")
        assert asked == ["rebinds.example"]
        await refused(Fetcher(5.0, 1000, None, rebinding), f"http://rebinds.example:{server.port}/")
    assert not server.seen


async def test_one_address_among_several_is_enough_to_refuse() -> None:
    said = await refused(fetcher(["8.8.8.8", "10.0.0.1"], domains=None), "http://both.example/")
    assert "private network" in said and "10.0.0.1" not in said  # whoever asks learns no inner address
    assert "--allowed-media-domains" in said
    assert "allow" not in await refused(fetcher(["169.254.169.254"], domains=None), "http://never.example/")


async def test_a_redirect_is_judged_anew() -> None:
    """From a host that is allowed, to one that is not: here by an address that changes in between."""
    async with Web({"/": redirect("/again"), "/again": reply(IMAGE)}).serving() as server:
        said = await refused(fetcher(["127.0.0.1"], ["169.254.169.254"]), f"http://{NAMED}:{server.port}/")
    assert "metadata" in said and len(server.seen) == 1


async def test_certificates_are_checked_against_the_name_and_https_is_not_left(tmp_path: Path) -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.configure_trust(ours)
    authority.issue_cert(NAMED).configure_cert(theirs)
    pages: dict[str, bytes] = {"/": reply(IMAGE), "/down": redirect(f"http://{NAMED}/")}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        writer.write(pages[path])
        writer.close()

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=theirs)
    port = server.sockets[0].getsockname()[1]
    names = {NAMED, "other.example"}
    trusting = Fetcher(5.0, 1000, names, resolve, ours)
    try:
        assert await trusting.fetch(f"https://{NAMED}:{port}/") == IMAGE
        assert "certificate" in await refused(trusting, f"https://other.example:{port}/")
        assert "certificate" in await refused(Fetcher(5.0, 1000, names, resolve), f"https://{NAMED}:{port}/")
        assert "from https" in await refused(trusting, f"https://{NAMED}:{port}/down")
    finally:
        server.close()


@pytest.mark.parametrize("url", [
    "http://", "http:///x", "http://a b/", "http://a\\@127.0.0.1/", "http://a\n.b/", "http://a:b@c/", "http://a@b/",
    "http://h:99999/", "http://h:x/", "http://[::1/", "http://[fe80::1%25eth0]/", "//h/x", "ftp://h/x", "h/x", "",
    "http://" + "a" * 9000, "http://" + "\u00e4" * 70 + ".example/"])
def test_what_is_no_plain_url_is_refused_before_anything_is_resolved(url: str) -> None:
    with pytest.raises(BadImageError):
        target_of(url)


async def test_hosts_are_allowed_by_any_spelling_of_their_name() -> None:
    async with Web({"/": reply(IMAGE)}).serving() as server:
        allowing = fetcher(domains=("B\u00fccher.Example.", "[::1]"))
        for host in ("b\u00fccher.example", "xn--bcher-kva.EXAMPLE", "[::1]"):
            assert await allowing.fetch(f"http://{host}:{server.port}/") == IMAGE


def test_a_url_is_read_once_and_asked_for_as_it_was_read() -> None:
    target = target_of("HTTP://B\u00fccher.Example.:8080/a/%20\u00fc?q=\u00fc#part")
    assert (target.host, target.port, target.path) == ("xn--bcher-kva.example", 8080, "/a/%20%C3%BC?q=%C3%BC")
    assert target.url == "http://xn--bcher-kva.example:8080/a/%20%C3%BC?q=%C3%BC"
