"""A program that attacks a server: `python -m tests.faults.attacker NAME HOST PORT`, as processes of their own do."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import threading
import time

Address = tuple[str, int]

TINY = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
PATIENCE_S = 60.0


def attack(name: str, address: Address) -> None:
    """Run the attack `name` in a process of its own, to its end."""
    subprocess.run([sys.executable, "-m", __name__, name, *map(str, address)], check=True, timeout=120)


def pipelining(address: Address) -> None:
    """400 connections, 256 KB of tiny requests on each, of which no reply is waited for."""
    flood = TINY * (256 * 1024 // len(TINY))
    clients = [socket.create_connection(address, timeout=PATIENCE_S) for _ in range(400)]
    sent = dict.fromkeys(clients, 0)
    with selectors.DefaultSelector() as ready:
        for client in clients:
            client.setblocking(False)
            ready.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
        deadline = time.monotonic() + PATIENCE_S
        while ready.get_map() and time.monotonic() < deadline:
            for key, events in ready.select(1.0):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                try:
                    if events & selectors.EVENT_WRITE:
                        sent[client] += client.send(flood[sent[client]:sent[client] + 65536])
                        if sent[client] == len(flood):
                            ready.modify(client, selectors.EVENT_READ)
                    if events & selectors.EVENT_READ and not client.recv(1 << 20):
                        ready.unregister(client)
                except BlockingIOError:
                    pass
                except OSError:
                    ready.unregister(client)
    for client in clients:
        client.close()


def one_pipeline(address: Address) -> None:
    """One connection, 1 MB of tiny requests."""
    with socket.create_connection(address, timeout=PATIENCE_S) as client, contextlib.suppress(OSError):
        client.sendall(TINY * ((1 << 20) // len(TINY)))
        while client.recv(1 << 20):
            pass


def chunks(address: Address) -> None:
    """100 connections, 256 KB of chunks of one byte on each."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"1\r\na\r\n" * (256 * 1024 // 6)

    def send() -> None:
        with socket.create_connection(address, timeout=PATIENCE_S) as client, contextlib.suppress(OSError):
            client.sendall(head + body)

    threads = [threading.Thread(target=send) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def bodies(address: Address) -> None:
    """Four bodies of 15 MB in turn: numbers and parts where nobody looks, and where somebody does."""
    numbers = b"[" + b"1e308," * 2_400_000 + b"1]"
    parts = b"[" + b'{"type":"text","text":""},' * 600_000 + b'{"type":"text","text":""}]'
    message = b'{"messages":[{"role":"user","content":"x","annotations":%s}]}'
    for path, body in (("/v1/chat/completions", message % numbers), ("/tokenize", message % numbers),
                       ("/v1/chat/completions", b'{"messages":[{"role":"user","content":%s}]}' % parts),
                       ("/v1/chat/completions", b'{"messages":[],"chat_template_kwargs":{"x":%s}}' % numbers),
                       ("/v1/completions", b'{"prompt":%s}' % numbers),
                       ("/v1/completions", b'{"prompt":"x","user":%s}' % numbers)):
        head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        raw = b""
        with socket.create_connection(address, timeout=PATIENCE_S) as client, contextlib.suppress(OSError):
            client.sendall(head.encode() + body)
            while got := client.recv(1 << 20):
                raw += got
        print(json.dumps({"path": path, "answer": raw[-200:].decode(errors="replace")}))


ATTACKS = {job.__name__: job for job in (pipelining, one_pipeline, chunks, bodies)}

if __name__ == "__main__":
    ATTACKS[sys.argv[1]]((sys.argv[2], int(sys.argv[3])))
