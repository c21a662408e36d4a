"""/load tells the same whichever worker answers."""

from __future__ import annotations

from contextlib import ExitStack

from tests.e2e.server import Server, until


def loads(server: Server) -> set[int]:
    return {server.get("/load").json()["server_load"] for _ in range(4)}  # connections fall to either worker


def test_every_worker_tells_the_streams_of_all(server: Server) -> None:
    until(lambda: loads(server) == {0})
    with ExitStack() as streams, server.client() as client:
        for _ in range(3):
            stream = streams.enter_context(client.completions.create(
                model="smollm2-135m-instruct", prompt="x", max_tokens=900, stream=True,
                extra_body={"ignore_eos": True}))
            next(iter(stream))
        assert loads(server) == {3}
    until(lambda: loads(server) == {0})
