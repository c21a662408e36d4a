"""Requests that have smuggled others past proxies, or broken servers, and what a strict server makes of each.

Every request to be refused is followed by one to /smuggled: no reply may ever be about that.
"""

from __future__ import annotations

from dataclasses import dataclass

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
_GET = b"GET /healthz HTTP/1.1\r\nHost: h\r\n"
_POST = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    request: bytes
    status: int  # of the only reply


def _heads() -> list[Case]:
    lines = {
        "bare LF after a header": b"GET /healthz HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        "bare LF everywhere": b"GET /healthz HTTP/1.1\nHost: h\n\n",
        "bare LF ends the head": _GET + b"\n",
        "bare CR in a value": _GET + b"X: a\rb\r\n\r\n",
        "CR CR LF": _GET + b"X: a\r\r\n\r\n",
        "folded header": _GET + b"X: a\r\n b\r\n\r\n",
        "folded first header": b"GET /healthz HTTP/1.1\r\n Host: h\r\n\r\n",
        "NUL in a value": _GET + b"X: a\0b\r\n\r\n",
        "control character in a value": _GET + b"X: a\x01b\r\n\r\n",
        "DEL in a value": _GET + b"X: a\x7fb\r\n\r\n",
        "space before the colon": _GET + b"X : a\r\n\r\n",
        "tab before the colon": _GET + b"X\t: a\r\n\r\n",
        "empty name": _GET + b": a\r\n\r\n",
        "no colon": _GET + b"X\r\n\r\n",
        "no Host": b"GET /healthz HTTP/1.1\r\nX: y\r\n\r\n",
        "two Hosts": _GET + b"Host: other\r\n\r\n",
        "the same Host twice": _GET + b"Host: h\r\n\r\n",
        "Host with a path": b"GET /healthz HTTP/1.1\r\nHost: h/x\r\n\r\n",
        "Host with a user": b"GET /healthz HTTP/1.1\r\nHost: u@h\r\n\r\n",
        "lower-case method": b"get /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        "unknown method": b"FOO /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        "space before the method": b" GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        "NUL in the method": b"G\0T /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        "target without slash": b"GET healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        "target with a space": b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
        "target with a tab": b"GET /a\tb HTTP/1.1\r\nHost: h\r\n\r\n",
        "target with NUL": b"GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n",
        "target beyond ASCII": b"GET /\x80 HTTP/1.1\r\nHost: h\r\n\r\n",
        "empty target": b"GET  HTTP/1.1\r\nHost: h\r\n\r\n",
        "asterisk for GET": b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
        "lower-case version": b"GET /healthz http/1.1\r\nHost: h\r\n\r\n",
        "version 1.10": b"GET /healthz HTTP/1.10\r\nHost: h\r\n\r\n",
        "space after the version": b"GET /healthz HTTP/1.1 \r\nHost: h\r\n\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "garbage": b"\xff\xfe\xfd\r\n\r\n",
    }
    return [Case(name, request, 400) for name, request in lines.items()]


def _lengths() -> list[Case]:
    te = b"Transfer-Encoding: "
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    found = [
        Case("length and chunks of an upgrade",
             _POST + upgrade + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        Case("two lengths of an upgrade",
             _POST + upgrade + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        Case("odd encoding of an upgrade", _POST + upgrade + te + b"xchunked\r\n\r\n0\r\n\r\n", 400),
        Case("length and chunks", _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        Case("chunks and length", _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        Case("two lengths", _POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        Case("one length twice", _POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        Case("two encodings", _POST + te + b"chunked\r\n" + te + b"identity\r\n\r\n0\r\n\r\n", 400),
        Case("chunked twice", _POST + te + b"chunked\r\n" + te + b"chunked\r\n\r\n0\r\n\r\n", 400),
        Case("folded encoding", _POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
        Case("chunks in HTTP/1.0",
             b"POST /v1/completions HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400)]
    for value in (b"+5", b"-1", b"0x5", b"5, 5", b"", b"5 5", b"\x0b5", b"5_0", b"1e1", b"5;", b"9" * 30):
        found.append(Case(f"length {value!r}", _POST + b"Content-Length: " + value + b"\r\n\r\nhello", 400))
    for value in (b"xchunked", b"chunked, identity", b"identity, chunked", b"gzip, chunked", b"identity",
                  b"chunked,chunked", b"chunked;q=1", b"\x0bchunked", b"chunked,", b", chunked", b"", b'"chunked"',
                  b"gzip", b"chun ked"):
        found.append(Case(f"encoding {value!r}", _POST + te + value + b"\r\n\r\n0\r\n\r\n", 400))
    return found


def _chunks() -> list[Case]:
    bodies = {
        "LF after the size": b"5\nhello\r\n0\r\n\r\n", "LF after the data": b"5\r\nhello\n0\r\n\r\n",
        "space after the size": b"5 \r\nhello\r\n0\r\n\r\n", "0x size": b"0x5\r\nhello\r\n0\r\n\r\n",
        "plus size": b"+5\r\nhello\r\n0\r\n\r\n", "minus size": b"-5\r\nhello\r\n0\r\n\r\n",
        "size too small": b"3\r\nhello\r\n0\r\n\r\n", "huge size": b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "LF in an extension": b"5;\nx\r\nhello\r\n0\r\n\r\n", "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        "NUL in an extension": b"5;\0\r\nhello\r\n0\r\n\r\n", "no size": b"\r\n0\r\n\r\n",
        "length as a trailer": b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
        "folded trailer": b"5\r\nhello\r\n0\r\n x: y\r\n\r\n",
    }
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [Case(f"{what}: {name}", head + body, 400) for name, body in bodies.items()
            for what, head in (("chunk", _CHUNKED), ("chunk of an upgrade", _POST + upgrade))]


def _sizes() -> list[Case]:
    return [
        Case("long target", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
        Case("long header", _GET + b"X: " + b"a" * 40000 + b"\r\n\r\n", 431),
        Case("long name", _GET + b"a" * 40000 + b": x\r\n\r\n", 431),
        Case("unfinished header", _GET + b"X: " + b"a" * 200000, 431),
        Case("long head of short headers",
             _GET + b"".join(b"X%d: %s\r\n" % (i, b"a" * 900) for i in range(60)) + b"\r\n", 431),
        Case("many headers", _GET + b"".join(b"X%d: y\r\n" % i for i in range(500)) + b"\r\n", 431),
        Case("long trailer", _CHUNKED + b"0\r\nX: " + b"a" * 200000, 431),
        Case("long chunk extension", _CHUNKED + b"5;" + b"a" * 200000, 431),
        Case("long trailer of an upgrade", _POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" +
             b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 200000, 431),
    ]


def _others() -> list[Case]:
    return [
        Case("HTTP/0.9", b"GET /healthz\r\n\r\n", 505),
        Case("HTTP/2.0", b"GET /healthz HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        Case("CONNECT", b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
    ]


REFUSED = _heads() + _lengths() + _chunks() + _sizes() + _others()

# Unusual, but right: one reply, of this status.
TAKEN = [
    Case("empty lines first", b"\r\n\r\n" + _GET + b"\r\n", 200),
    Case("HTTP/1.0 without Host", b"GET /healthz HTTP/1.0\r\n\r\n", 200),
    Case("absolute target", b"GET http://h/healthz HTTP/1.1\r\nHost: h\r\n\r\n", 200),
    Case("value beyond ASCII", _GET + b"X: caf\xc3\xa9\r\n\r\n", 200),
    Case("IPv6 Host", b"GET /healthz HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", 200),
    Case("empty Host", b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 200),
    Case("GET with a body", _GET + b"Content-Length: 5\r\n\r\nhello", 200),
    Case("h2c upgrade",
         _GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n", 200),
    Case("websocket upgrade", _GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
]
