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
from unittest.mock import patch

import pytest

from quire.app import terminal
from quire.app.cli import main
from quire.app.terminal import _Choice, _Event, _Usage
from tests.app.conftest import KEY

EVENT = b'data: {"choices":[{"text":"Once"}]}\n\n'


@contextmanager
def answering(body: bytes, status: str = "200 OK") -> Iterator[str]:
    """The base address of a server that answers the first request so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer() -> None:
            connection, _ = listener.accept()
            listener.close()  # nobody answers a second one
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


@pytest.mark.parametrize("event", [b"nonsense", b"[" * 10_000, b'"\xff"', b"[]", b'{"choices": 1}',
                                   b'{"choices": [{"text": 1}]}'])
def test_an_event_that_cannot_be_read_is_not_blamed_on_the_url(capsys: pytest.CaptureFixture[str],
                                                               event: bytes) -> None:
    with answering(b"data: " + event + b"\n\n") as url:
        assert main(["complete", "--url", url, "Tell me"]) == 1
    told = capsys.readouterr().err
    assert "--url" not in told
    assert f"{url} sent an event that cannot be read" in told


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "http://a..b/v1", "http://127.0.0.1/caf\u00e9", "http://[::1/v1"])
def test_a_url_that_is_none_is_named(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert main(["complete", "--url", url, "Tell me"]) == 1
    assert capsys.readouterr().err.startswith("quire: --url: ")


@pytest.mark.parametrize(("path", "status", "key", "said"), [
    ("/v1", "401 Unauthorized", "", "-> give it with --api-key, or as VLLM_API_KEY"),
    ("/v1", "401 Unauthorized", KEY, "-> the key of --api-key or VLLM_API_KEY is another"),
    ("/other", "404 Not Found", "", "-> --url is the base address, which mostly ends in /v1: "),
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


def at_a_terminal(typed: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    ours, theirs = pty.openpty()
    os.write(ours, typed)
    done = subprocess.run([sys.executable, "-m", "quire", "chat", *arguments], stdin=theirs, capture_output=True,
                          text=True, timeout=30, check=False)
    os.close(ours)
    os.close(theirs)
    return done


def test_where_nobody_answers_it_says_how_to_start_a_server() -> None:
    with socket.socket() as deaf:  # bound, and nobody listens
        deaf.bind(("127.0.0.1", 0))
        done = at_a_terminal(b"one\n", "--port", str(deaf.getsockname()[1]))
    assert done.returncode == 1
    assert "does not answer: Connection refused -> start a server with: quire serve" in done.stderr


def test_at_a_terminal_a_failure_is_not_the_end_and_commands_are_not_sent() -> None:
    with answering(b'{"data": [{"id": "some-model"}]}') as url:  # and nothing after
        done = at_a_terminal(b"/system Be brief.\n/nonsense\n/help\none\n\ntwo\n/clear\n\x04", "--url", url)
    assert done.returncode == 0
    assert f"some-model at {url}" in done.stderr
    assert done.stderr.count("does not answer") == 2
    for said in ("told first from now on: Be brief.", "there is no command /nonsense", "/system TEXT", "forgotten"):
        assert said in done.stderr


@pytest.mark.parametrize("given", ["{}", "http://{}", "http://{}/", "http://{}/v1", "{}/v1/"])
def test_an_address_may_lack_its_scheme_and_its_v1(capsys: pytest.CaptureFixture[str], given: str) -> None:
    with answering(EVENT + b"data: [DONE]\n\n") as url:
        address = url.removeprefix("http://").removesuffix("/v1")
        assert main(["complete", "--url", given.format(address), "Tell me"]) == 0
    assert capsys.readouterr().out == "Once\n"


def test_the_length_and_the_speed_of_a_reply_are_told() -> None:
    moments = iter([10.0, 10.5, 12.5])
    events = [_Event([_Choice(text="Once")]), _Event([_Choice(text=" upon")]), _Event(usage=_Usage(21))]
    with patch.object(terminal.time, "perf_counter", lambda: next(moments)):
        assert terminal._print_reply(iter(events)) == "(21 tokens; the first after 0.50 s, then 10.0 tokens/s)"


@pytest.mark.parametrize(("argv", "said"), [
    (["srve"], "there is no 'srve'; did you mean 'serve'?"), (["nothing"], "there are serve, check"),
    (["chat", "--ulr", "x"], "there is no setting '--ulr'; did you mean '--url'?"),
    (["keys", "creat"], "did you mean 'create'?"), (["chat", "--port", "many"], "invalid int value: 'many'"),
    (["pull", "--revison=x"], "did you mean '--revision'?"), (["complete", "a", "b"], "b: not expected here")])
def test_a_mistyped_command_or_flag_is_one_line_with_what_was_meant(capsys: pytest.CaptureFixture[str],
                                                                    argv: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and told.count("\n") == 1


def test_a_key_that_no_header_can_hold_is_named_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "--api-key", KEY + "\n", "Tell me"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("quire: --api-key: ")
    assert KEY not in told
