"""The protocol on a real socket, under an application that says what it got."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvicorn
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from quire.app.connections import Connections
from quire.app.protocol import MAX_PIPELINED, HttpProtocol
from quire.app.settings import ServeSettings
from tests.http_corpus import REFUSED, SMUGGLED, TAKEN, Case
from tests.raw_http import Answer, connect, receive, send
from tests.shifted_time import ShiftedLoop

# By the clock of `timed`, which goes on when a test says so.
LIMITS: dict[str, Any] = {"header_timeout": 50.0, "body_timeout": 70.0, "keep_alive_timeout": 90.0}
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


class App:
    """Answers with what it saw. `/early` and `/hasty` answer without reading the body, the first to close; `/slow`
    reads it late, `/held` only when it may `go`; `/stream` waits for `go` half way; `/endless` sends until the client
    is gone."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.seen.append(path)
        if path == "/early":
            await self._reply(send, 413, b"too much", [(b"connection", b"close")])
            return
        if path == "/hasty":
            await self._reply(send, 401, b"no")
            return
        if path == "/endless":
            await self._send_without_end(receive, send)
            return
        if path == "/slow":
            await asyncio.sleep(0.05)
        if path == "/held":
            await self._may_go()
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.seen.append("disconnect")
                return
            body += message["body"]
            if not message["more_body"]:
                break
        if path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await self._may_go()
            await send({"type": "http.response.body", "body": b"two", "more_body": False})
            return
        names = [name.decode() for name, _ in scope["headers"]]
        await self._reply(send, 200, json.dumps(
            {"path": path, "bytes": len(body), "method": scope["method"], "headers": names}).encode())

    async def _may_go(self) -> None:
        while not self.go.is_set():
            await asyncio.sleep(0.01)

    async def _send_without_end(self, receive: Receive, send: Send) -> None:
        await receive()
        gone = asyncio.create_task(receive())  # type: ignore[arg-type]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            await asyncio.sleep(0)
        self.seen.append("disconnect")

    async def _reply(self, send: Send, status: int, body: bytes, headers: list[Any] | None = None) -> None:
        await send({"type": "http.response.start", "status": status,
                    "headers": [(b"content-length", b"%d" % len(body)), *(headers or [])]})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class Wire:
    def __init__(self, address: tuple[str, int], app: App, refused: list[str], loop: ShiftedLoop | None) -> None:
        self.address = address
        self.app = app
        self.refused = refused
        self._loop = loop

    def later(self, seconds: float) -> None:
        """Of `timed`: what was sent has arrived, and so much time is over."""
        assert self._loop is not None
        self._loop.later(seconds)

    def send(self, *pieces: bytes, **options: Any) -> Answer:
        return send(self.address, *pieces, **options)


@contextmanager
def wire(max_open: int = 10_000, listener: socket.socket | None = None, tls: dict[str, str] | None = None,
         loop: ShiftedLoop | None = None, **changes: Any) -> Iterator[Wire]:
    refused: list[str] = []
    settings = ServeSettings(**(LIMITS | changes))
    app = App()
    config = uvicorn.Config(
        app, http=partial(HttpProtocol, connections=Connections(
            settings, None, refused.append, max_open)),  # type: ignore[arg-type]
        loop="uvloop", ws="none", lifespan="off", log_config=None, access_log=False,
        timeout_keep_alive=settings.keep_alive_timeout, **(tls or {}))  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    with listener or socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(server, listener, loop))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Wire(listener.getsockname(), app, refused, loop)
        finally:
            app.go.set()
            server.should_exit = server.force_exit = True
            thread.join()


def _serve(server: uvicorn.Server, listener: socket.socket, loop: ShiftedLoop | None) -> None:
    if loop is None:
        server.run([listener])
        return
    loop.run_until_complete(server.serve([listener]))
    loop.close()


@contextmanager
def timed(**changes: Any) -> Iterator[Wire]:
    """A wire whose deadlines pass when a test says so."""
    with wire(loop=ShiftedLoop(), **changes) as found:
        yield found


@pytest.fixture(scope="module")
def lasting() -> Iterator[Wire]:
    with wire(header_timeout=10.0, body_timeout=10.0, keep_alive_timeout=10.0) as found:
        yield found


@pytest.fixture
def strict(lasting: Wire) -> Wire:
    """Of whose deadlines a test sees nothing."""
    lasting.app.seen.clear()
    return lasting


def posted(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: h", *headers, "", ""]).encode()


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_broken_requests_get_one_refusal_and_a_closed_connection(strict: Wire, case: Case) -> None:
    answer = strict.send(case.request + SMUGGLED)
    assert answer.statuses == [case.status], answer.raw[:300]
    assert answer.closed
    reply = answer.replies[0]
    assert reply.headers["connection"] == "close"
    assert reply.headers["x-request-id"]
    assert reply.error["code"] == case.status
    assert reply.error["message"]
    assert "/smuggled" not in strict.app.seen


@pytest.mark.parametrize("case", [case for case in REFUSED if len(case.request) < 200], ids=lambda case: case.name)
def test_broken_requests_are_refused_byte_by_byte_too(strict: Wire, case: Case) -> None:
    with connect(strict.address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in case.request + SMUGGLED:
            try:
                client.sendall(bytes([byte]))
            except OSError:
                break
        answer = receive(client)
    assert answer.statuses in ([case.status], []), answer.raw[:300]  # a reset may take the reply away
    assert answer.closed
    assert "/smuggled" not in strict.app.seen


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_unusual_requests_are_taken(strict: Wire, case: Case) -> None:
    assert strict.send(case.request).statuses == [case.status]


@pytest.mark.parametrize("request_", [
    b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"GET /x HTTP/1.0\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"])
def test_nothing_is_answered_after_the_last_request(strict: Wire, request_: bytes) -> None:
    answer = strict.send(request_ + SMUGGLED)
    assert answer.statuses == [200]
    assert answer.closed
    assert "/smuggled" not in strict.app.seen


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAA")
UPGRADING = [posted("/up", *UPGRADE, "Content-Length: 5") + b"hello",
             posted("/up", *UPGRADE, "Transfer-Encoding: chunked") + b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
             posted("/up", *UPGRADE, "Content-Length: 5", "Connection: keep-alive") + b"hello",
             posted("/up", "Content-Length: 5", "Connection: upgrade", "Upgrade: websocket") + b"hello"]


def in_pieces(raw: bytes, size: int) -> list[bytes]:
    return [raw[i:i + size] for i in range(0, len(raw), size)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("request_", UPGRADING, ids=["length", "chunks", "keep-alive", "websocket"])
def test_a_request_that_asks_for_an_upgrade_keeps_its_body_and_is_the_last(strict: Wire, request_: bytes,
                                                                           size: int) -> None:
    with connect(strict.address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in in_pieces(request_, size):
            client.sendall(piece)
            time.sleep(0.001)
        answer = receive(client)
    assert answer.statuses == [200], answer.raw[:300]
    assert json.loads(answer.replies[0].body)["bytes"] == 5
    assert answer.replies[0].headers["connection"] == "close"
    assert answer.closed
    assert strict.app.seen == ["/up"]


@pytest.mark.parametrize("tail", [SMUGGLED, posted("/smuggled", "Content-Length: 5") + b"hello", b"\0\xff" * 50_000,
                                  b"\r\n" * 50_000],
                         ids=["GET", "POST", "garbage", "empty lines"])
@pytest.mark.parametrize("request_", UPGRADING, ids=["length", "chunks", "keep-alive", "websocket"])
def test_what_follows_an_upgrade_is_dropped(request_: bytes, tail: bytes) -> None:
    """In the same packet, and in later ones while the reply is being made."""
    with timed() as server, connect(server.address) as client:
        client.sendall(request_.replace(b" /up ", b" /stream ") + tail)
        _until(lambda: server.app.seen)
        client.sendall(tail)
        server.later(0)  # for it to be dropped before the reply, not after
        server.app.go.set()
        answer = receive(client)
    assert answer.statuses[:1] in ([200], [])  # a reset may take the reply away
    assert len(answer.replies) < 2
    assert answer.closed
    assert server.app.seen == ["/stream"]
    assert not server.refused


def test_an_upgrade_behind_another_request_keeps_its_body(strict: Wire) -> None:
    answer = strict.send(GET + UPGRADING[0] + SMUGGLED, num=2)
    assert [json.loads(reply.body)["bytes"] for reply in answer.replies] == [0, 5]
    assert answer.closed
    assert strict.app.seen == ["/x", "/up"]


def test_the_body_of_an_upgrade_may_be_large(strict: Wire) -> None:
    size = 3 << 20
    answer = strict.send(posted("/slow", *UPGRADE, f"Content-Length: {size}"), b"a" * size)
    assert json.loads(answer.replies[0].body)["bytes"] == size


def test_the_body_of_an_upgrade_cannot_be_dragged_out() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(posted("/x", *UPGRADE, "Content-Length: 1000"))
        assert _drip(server, client, b"a", "body_timeout").startswith(b"HTTP/1.1 408 ")
    assert server.refused == ["body_timeout"]


def test_a_long_answer_to_an_upgrade_is_not_cut_by_the_deadlines_of_senders() -> None:
    with timed() as server, connect(server.address) as client:
        for piece in in_pieces(UPGRADING[0].replace(b" /up ", b" /stream ") + SMUGGLED, 50):
            client.sendall(piece)
            server.later(5)
        server.later(150)
        server.app.go.set()
        assert receive(client).replies[0].body == b"onetwo"
    assert not server.refused


def test_trailers_do_not_upgrade(strict: Wire) -> None:
    chunks = b"5\r\nhello\r\n0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = strict.send(posted("/x", "Transfer-Encoding: chunked") + chunks + GET, num=2)
    assert [json.loads(reply.body)["bytes"] for reply in answer.replies] == [5, 0]


@pytest.mark.parametrize("connection", [(), ("Connection: keep-alive",)])
def test_a_reply_of_unknown_length_to_http_1_0_ends_with_the_connection(connection: tuple[str, ...]) -> None:
    with wire() as server:
        server.app.go.set()
        answer = server.send(posted("/stream", "Content-Length: 2", *connection).replace(b"/1.1", b"/1.0") + b"{}")
        known = server.send(b"GET /x HTTP/1.0\r\n\r\n")
    assert answer.statuses == [200]
    assert "transfer-encoding" not in answer.replies[0].headers
    assert answer.raw.partition(b"\r\n\r\n")[2] == b"onetwo"
    assert answer.closed
    assert int(known.replies[0].headers["content-length"]) == len(known.replies[0].body) > 0


def test_pipelined_requests_are_answered_in_order(strict: Wire) -> None:
    body = b"hello"
    answer = strict.send(GET + posted("/y", "Content-Length: 5") + body + posted("/z", "Transfer-Encoding: chunked")
                         + b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Admin: yes\r\n\r\n" + GET, num=4)
    seen = [json.loads(reply.body) for reply in answer.replies]
    assert [found["path"] for found in seen] == ["/x", "/y", "/z", "/x"]
    assert [found["bytes"] for found in seen] == [0, 5, 5, 0]
    assert not answer.closed


def test_a_few_requests_may_wait_for_a_reply_and_no_more() -> None:
    first = b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"
    with wire(header_timeout=10.0) as server, connect(server.address) as client:
        client.sendall(first + GET * MAX_PIPELINED)
        _until(lambda: server.app.seen)
        server.app.go.set()
        assert receive(client, num=1 + MAX_PIPELINED).statuses == [200] * (1 + MAX_PIPELINED)
        server.app.go.clear()
        server.app.seen.clear()
        client.sendall(first + GET * (MAX_PIPELINED + 1))
        _until(lambda: server.refused)
        server.app.go.set()
        answer = receive(client, num=2)
        assert answer.statuses == [200, 503], "a reply that has begun is finished, those that wait are not"
        assert answer.closed
        assert server.app.seen == ["/stream"]
    assert server.refused == ["pipelining"]


def test_a_flood_of_requests_holds_the_loop_for_a_moment_only() -> None:
    """Of one that may wait and one that does not: neither is parsed as one piece."""
    with wire(header_timeout=10.0) as server:
        for head in (b"", posted("/early", "Transfer-Encoding: chunked")):
            with connect(server.address) as client, connect(server.address) as other:
                pieces = head + (b"1\r\na\r\n" if head else GET) * 40_000
                threading.Thread(target=partial(_send_all, client, pieces)).start()
                longest_s = 0.0
                for _ in range(20):
                    begun = time.perf_counter()
                    other.sendall(GET)
                    assert receive(other, quiet_s=0.01).statuses == [200]
                    longest_s = max(longest_s, time.perf_counter() - begun)
                assert longest_s < 0.1
    assert server.refused == ["pipelining"]


def test_what_comes_in_slices_comes_whole(strict: Wire) -> None:
    size = 1 << 20
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in in_pieces(b"a" * size, 777)) + b"0\r\n\r\n"
    answer = strict.send(posted("/slow", "Transfer-Encoding: chunked") + body + GET, num=2)
    assert [json.loads(reply.body)["bytes"] for reply in answer.replies] == [size, 0]


def test_idle_connections_give_way_to_new_ones() -> None:
    with timed(max_open=20) as server, ExitStack() as stack:
        busy = stack.enter_context(connect(server.address))
        busy.sendall(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        idle = [stack.enter_context(connect(server.address)) for _ in range(19)]
        server.later(1)
        used = idle[0]  # idle for less time than the others
        used.sendall(GET)
        assert receive(used).statuses == [200]
        for _ in range(2):
            assert server.send(GET).statuses == [200]
        assert receive(idle[1]).closed
        assert not receive(used, 0.1).closed
        server.app.go.set()
        assert receive(busy).replies[0].body == b"onetwo"


def test_a_full_worker_still_answers_probes() -> None:
    with wire(max_open=2, header_timeout=10.0) as server, ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(connect(server.address))
            busy.sendall(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
            assert receive(busy, num=0).replies
        refused = server.send(GET)
        assert (refused.statuses, refused.closed) == ([503], True)
        assert server.send(GET.replace(b"/x", b"/livez")).statuses == [200]
    assert set(server.refused) == {"connections"}


def test_a_proxy_that_is_named_may_have_any_number_of_connections() -> None:
    with (wire(max_connections_per_ip=1, forwarded_allow_ips=["127.0.0.0/8"]) as server,
          connect(server.address), connect(server.address)):
        assert server.send(GET).statuses == [200]


async def test_refusals_beyond_a_few_a_second_are_counted_not_logged() -> None:
    refused: list[str] = []
    connections = Connections(ServeSettings(), None, refused.append)
    with capture_logs() as lines:
        for _ in range(1000):
            connections.refused("malformed", status=400)
        assert len(lines) < 20
        connections._second_over()
        connections.refused("malformed", status=400)
    assert lines[-2]["event"] == "refusals not logged"
    assert lines[-2]["count"] + len(lines) - 2 == 1000
    assert lines[-1]["event"] == "request refused"
    assert len(refused) == 1001


def _send_all(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        client.sendall(data)


def test_trailers_are_not_headers(strict: Wire) -> None:
    with connect(strict.address) as client:
        client.sendall(posted("/x", "Transfer-Encoding: chunked") + b"0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
        assert json.loads(receive(client).replies[0].body)["headers"] == ["host", "transfer-encoding"]


def test_a_broken_request_behind_others_waits_for_their_replies() -> None:
    with wire(header_timeout=10.0) as server, connect(server.address) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n" + b"GET / HTTP/1.1\r\n\r\n" + SMUGGLED)
        _until(lambda: server.refused)
        server.app.go.set()
        answer = receive(client, num=2)
    assert answer.statuses == [200, 400]
    assert answer.replies[0].body == b"onetwo"
    assert answer.closed
    assert server.app.seen == ["/stream"]


def test_expect_continue_is_answered_before_the_body_is_sent(strict: Wire) -> None:
    with connect(strict.address) as client:
        client.sendall(posted("/x", "Content-Length: 5", "Expect: 100-continue"))
        assert receive(client).statuses == [100]
        client.sendall(b"hello")
        assert receive(client).statuses == [200]


def test_a_head_that_does_not_end_is_cut() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n")
        server.later(LIMITS["header_timeout"] - 1)
        assert not server.refused
        server.later(1.1)
        answer = receive(client)
        assert answer.statuses == [408]
        assert answer.closed
        assert "--header-timeout" in answer.replies[0].error["message"]


def test_each_part_has_its_own_time() -> None:
    with timed() as server, connect(server.address) as client:
        for piece in (b"POST /x HTTP/1.1\r\n", b"Host: h\r\nContent-Length: 2\r\n\r\n", b"{", b"}"):
            client.sendall(piece)
            server.later(30)
        assert receive(client).statuses == [200]
    assert not server.refused


def test_a_head_cannot_be_dragged_out() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        _drip(server, client, b"X: y\r\n", "header_timeout")
    assert server.refused == ["header_timeout"]


def test_a_silent_connection_is_closed_without_a_word() -> None:
    with timed() as server, connect(server.address) as client:
        server.later(LIMITS["header_timeout"] + 1)
        answer = receive(client)
        assert answer.closed
        assert answer.raw == b""


def test_empty_lines_do_not_keep_an_idle_connection() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(GET)
        assert receive(client).statuses == [200]
        _drip(server, client, b"\r\n", "keep_alive_timeout")


def test_an_idle_connection_is_closed_after_its_time() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(GET)
        assert receive(client).statuses == [200]
        for _ in range(2):
            server.later(LIMITS["keep_alive_timeout"] - 1)
            client.sendall(GET)  # in time
            assert receive(client).statuses == [200]
        server.later(LIMITS["keep_alive_timeout"] + 1)
        assert receive(client).closed


@pytest.mark.parametrize("head", [posted("/x", "Content-Length: 1000"),
                                  posted("/x", "Transfer-Encoding: chunked") + b"3e8\r\n"])
def test_a_body_cannot_be_dragged_out(head: bytes) -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(head)
        raw = _drip(server, client, b"a", "body_timeout")
        assert raw.startswith(b"HTTP/1.1 408 ")
        assert b"--body-timeout" in raw
        assert server.refused == ["body_timeout"]
        _until(lambda: server.app.seen == ["/x", "disconnect"])  # the application may hear of it after the client


def test_a_body_that_the_application_holds_back_is_not_late() -> None:
    size = 3 << 20
    with timed() as server, connect(server.address) as client:
        client.sendall(posted("/held", f"Content-Length: {size}"))
        sender = threading.Thread(target=_send_all, args=(client, b"a" * size))
        sender.start()
        _until(lambda: server.app.seen)
        for _ in range(4):
            server.later(40)
        server.app.go.set()
        sender.join()
        answer = receive(client)
        assert answer.statuses == [200]
        assert json.loads(answer.replies[0].body)["bytes"] == size


def test_a_body_that_nobody_waits_for_is_cut_too() -> None:
    """The application answered long ago, and would let the connection live."""
    with timed() as server, connect(server.address) as client:
        client.sendall(posted("/hasty", "Content-Length: 1000"))
        raw = _drip(server, client, b"a", "body_timeout")
    assert raw.count(b"HTTP/1.1 ") == 1
    assert raw.startswith(b"HTTP/1.1 401 ")
    assert server.refused == ["body_timeout"]


def test_a_client_that_waits_for_continue_is_not_late() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(posted("/held", "Content-Length: 2", "Expect: 100-continue"))
        for _ in range(4):
            server.later(40)
        server.app.go.set()
        assert receive(client).statuses == [100]
        client.sendall(b"{}")
        assert receive(client).statuses == [200]


def test_an_early_refusal_reaches_a_client_that_is_still_sending() -> None:
    with wire() as server:
        size = 8 << 20
        answer = server.send(posted("/early", f"Content-Length: {size}"), b"a" * size)
        assert answer.statuses == [413]
        assert answer.closed


def test_a_long_answer_is_not_cut_by_the_deadlines_of_senders() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(posted("/stream", "Content-Length: 2") + b"{}")
        server.later(150)
        server.app.go.set()
        assert receive(client).replies[0].body == b"onetwo"


ENDLESS = b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n"


def test_a_client_that_does_not_read_is_cut() -> None:
    with timed() as server, connect(server.address) as client:
        client.sendall(ENDLESS)
        _is_cut(server)


def test_a_client_that_does_not_read_is_cut_on_a_unix_socket_too(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    with timed(listener=listener) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(ENDLESS)
        _is_cut(server)


def test_a_client_that_does_not_read_is_cut_under_tls_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    pem = tmp_path / "pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    with (timed(tls={"ssl_certfile": str(pem), "ssl_keyfile": str(pem)}) as server,
          connect(server.address, trust) as client):
        client.sendall(ENDLESS)
        _is_cut(server)


def test_connections_of_one_address_are_counted() -> None:
    with wire(max_connections_per_ip=2, header_timeout=10.0) as server:
        with connect(server.address) as one, connect(server.address) as two:
            for client in (one, two):
                client.sendall(GET)
                assert receive(client).statuses == [200]
            answer = server.send(GET)
            assert answer.statuses == [503]
            assert answer.closed
            assert answer.replies[0].headers["retry-after"] == "1"
        _until(lambda: server.send(GET).statuses == [200])
    assert set(server.refused) == {"connections"}


def _drip(server: Wire, client: socket.socket, piece: bytes, limit: str) -> bytes:
    """Sends a piece each third of the time that a limit gives, until cut, which must be when it is over; what came
    back."""
    client.setblocking(False)
    raw = b""
    for number in range(5):
        with suppress(OSError):
            client.sendall(piece)
        server.later(LIMITS[limit] / 3 + 0.1)
        try:
            while got := client.recv(65536):
                raw += got
        except BlockingIOError:
            continue
        except OSError:
            pass
        assert number >= 2, "cut before its time"
        return raw
    raise AssertionError("not cut")


def _is_cut(server: Wire) -> None:
    """Not before its time, which begins when nothing more can be written."""
    server.later(LIMITS["body_timeout"] / 2)
    assert "disconnect" not in server.app.seen

    def is_gone() -> bool:
        server.later(LIMITS["body_timeout"] / 2)
        return "disconnect" in server.app.seen

    _until(is_gone)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
