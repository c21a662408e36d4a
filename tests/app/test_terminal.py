"""The terminal clients against a server that is none of ours, or not there: what they say is at fault."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from quire.app.cli import main
from tests.app.conftest import KEY

EVENT = b'data: {"choices":[{"text":"Once"}]}\n\n'


@contextmanager
def answering(body: bytes, status: str = "200 OK") -> Iterator[str]:
    """The base address of a server that answers the first request so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):  # the client may have enough, and be gone
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 {status}\r\nconnection: close\r\n\r\n".encode() + body)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join(5)


def test_only_events_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    other_ends = b": ping\n\nevent: x\nid: 1\n" + EVENT
    with answering(b": ping\n\n" + EVENT + other_ends.replace(b"\n", b"\r\n") + b"data: [DONE]\n\n") as url:
        assert main(["complete", "--url", url, "--api-key", KEY, "Tell me"]) == 0
    assert capsys.readouterr() == ("OnceOnce\n", "")


def test_a_reply_that_was_cut_off_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(EVENT) as url:
        assert main(["complete", "--url", url, "Tell me"]) == 1
    printed, told = capsys.readouterr()
    assert printed == "Once"
    assert told.startswith("quire: the reply was cut off")


def test_who_reads_no_further_gets_no_traceback() -> None:
    with answering(EVENT * 100_000 + b"data: [DONE]\n\n") as url:
        command = f"set -o pipefail; {sys.executable} -m quire complete --url {url} 'Tell me' | head -c 4"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "Once", "")


@pytest.mark.parametrize("event", [b"nonsense", b"[]", b'{"choices": 1}', b'{"choices": [{"text": 1}]}'])
def test_an_event_that_cannot_be_read_is_not_blamed_on_the_url(capsys: pytest.CaptureFixture[str],
                                                               event: bytes) -> None:
    with answering(b"data: " + event + b"\n\n") as url:
        assert main(["complete", "--url", url, "Tell me"]) == 1
    told = capsys.readouterr().err
    assert "--url" not in told
    assert f"{url} sent an event that cannot be read" in told


@pytest.mark.parametrize("url", ["nonsense", "http://a..b/v1", "http://127.0.0.1/caf\u00e9", "http://[::1/v1"])
def test_a_url_that_is_none_is_named(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert main(["complete", "--url", url, "Tell me"]) == 1
    assert capsys.readouterr().err.startswith("quire: --url: ")


@pytest.mark.parametrize(("path", "status", "key", "said"), [
    ("/v1", "401 Unauthorized", "", "-> give it with --api-key, or as VLLM_API_KEY"),
    ("/v1", "401 Unauthorized", KEY, "-> the key of --api-key or VLLM_API_KEY is another"),
    ("", "404 Not Found", "", "-> --url is the base address, which mostly ends in /v1: "),
    ("/v1", "404 Not Found", "", "no such model\n")])
def test_a_refusal_says_what_to_do(capsys: pytest.CaptureFixture[str], path: str, status: str, key: str,
                                   said: str) -> None:
    with answering(b'{"error": {"message": "no such model"}}', status) as url:
        assert main(["chat", "--url", url.removesuffix("/v1") + path, "--api-key", key, "Tell me"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("quire: no such model")
    assert said in told


def test_a_text_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "caf\udce9"]) == 1
    assert capsys.readouterr().err == "quire: what was typed is not UTF-8\n"


def test_at_a_terminal_a_failure_is_not_the_end() -> None:
    ours, theirs = pty.openpty()
    with socket.socket() as deaf:  # bound, and nobody listens
        deaf.bind(("127.0.0.1", 0))
        command = [sys.executable, "-m", "quire", "chat", "--url", f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"]
        os.write(ours, b"one\n\ntwo\n\x04")
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=30, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert done.stderr.count("does not answer: Connection refused") == 2


def test_a_key_that_no_header_can_hold_is_named_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "--api-key", KEY + "\n", "Tell me"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("quire: --api-key: ")
    assert KEY not in told
