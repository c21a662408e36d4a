"""A client that leaves, in whatever way, ends its request: the engine's work and its blocks are gone at once."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from tests.e2e.server import KEY, Server, until


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [socket.socket.close, reset, half_close], ids=["fin", "rst", "half-close"])
@pytest.mark.parametrize("when", ["streaming", "computing", "uploading"])
def test_leaving_frees_what_the_request_held(server: Server, leave: Callable[[socket.socket], None],
                                             when: str) -> None:
    until(lambda: server.metric("vllm:num_requests_running") == 0, 60)
    aborted = server.metric("quire:requests_aborted_total")
    address = urlsplit(server.url)
    body = json.dumps({"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": when == "streaming"})
    head = (f"POST /v1/completions HTTP/1.1\r\nhost: {address.hostname}\r\nauthorization: Bearer {KEY}\r\n"
            f"x-request-id: leaves-{when}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n")
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        if when == "uploading":
            connection.sendall(head.encode() + body[:10].encode())
            time.sleep(0.2)
        else:
            connection.sendall(head.encode() + body.encode())
            until(lambda: server.metric("vllm:num_requests_running") == 1)
        if when == "streaming":
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        generated = server.metric("vllm:generation_tokens_total")
        leave(connection)
        until(lambda: server.metric("vllm:num_requests_running") == 0)
    until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)
    assert server.metric("vllm:generation_tokens_total") - generated < 500  # it did not run to its end
    until(lambda: [e for e in server.events("request") if e["request_id"] == f"leaves-{when}"])
    assert server.events("request")[-1]["status"] in (499, 200)
    if when != "uploading":
        until(lambda: server.metric("quire:requests_aborted_total") == aborted + 1)
