"""`quire chat` and `quire complete`: small streaming clients of a running server, on the standard library alone."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
_DATA = b"data: "
_DONE = b"data: [DONE]"
_Ask = Callable[[str], Iterator[str]]


class _ServerError(Exception):
    pass


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Error(msgspec.Struct):
    message: str


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


class _Refusal(msgspec.Struct):
    error: _Error


def chat(options: argparse.Namespace) -> int:
    messages: list[dict[str, str]] = []
    if options.system_prompt:
        messages.append({"role": "system", "content": options.system_prompt})

    def ask(text: str) -> Iterator[str]:
        asked = {"role": "user", "content": text}
        reply = ""
        for event in _stream(options, "/chat/completions", {"messages": [*messages, asked]}):
            piece = "".join(choice.delta.content or "" for choice in event.choices)
            reply += piece
            yield piece
        messages.extend([asked, {"role": "assistant", "content": reply}])  # a turn that failed is as if never asked

    return _converse(options, ask)


def complete(options: argparse.Namespace) -> int:
    def ask(text: str) -> Iterator[str]:
        for event in _stream(options, "/completions", {"prompt": text}):
            yield "".join(choice.text or "" for choice in event.choices)

    return _converse(options, ask)


def _converse(options: argparse.Namespace, ask: _Ask) -> int:
    try:
        if options.text is not None:
            _print_reply(ask(options.text))
        elif sys.stdin.isatty():
            _talk(ask)
        else:
            for line in sys.stdin:
                _print_reply(ask(line.removesuffix("\n")))
    except KeyboardInterrupt:
        print()
        return EXIT_INTERRUPTED
    except _ServerError as error:
        print(f"quire: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _talk(ask: _Ask) -> None:
    """With somebody at a terminal, who may go on after a failure."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() the arrow keys
    print("Ctrl-C stops a reply, Ctrl-D ends.", file=sys.stderr)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            text = input("> ")
            try:
                if text.strip():
                    _print_reply(ask(text))
            except KeyboardInterrupt:
                print()
            except _ServerError as error:
                print(f"quire: {error}", file=sys.stderr)
    print()


def _print_reply(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _stream(options: argparse.Namespace, path: str, body: dict[str, Any]) -> Iterator[_Event]:
    for name in ("model", "max_tokens", "temperature"):
        if getattr(options, name) is not None:
            body[name] = getattr(options, name)
    try:
        data = msgspec.json.encode(body | {"stream": True})
    except UnicodeEncodeError:
        raise _ServerError("what was typed is not UTF-8") from None
    request = _request(options, path, data)
    try:
        with urllib.request.urlopen(request) as reply:
            for line in reply:
                if line.strip() == _DONE:
                    return
                if not line.startswith(_DATA):
                    continue  # comments and empty lines
                event = msgspec.json.decode(line[len(_DATA):], type=_Event)
                if event.error is not None:
                    raise _ServerError(event.error.message)
                yield event
        raise _ServerError("the reply was cut off: the server or the connection ended before it did")
    except urllib.error.HTTPError as error:
        raise _ServerError(_message_of(error) + _hint(error.code, options)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _ServerError(f"{options.url} does not answer: {_why(getattr(error, 'reason', error))}") from None
    except msgspec.DecodeError as error:
        raise _ServerError(f"{options.url} sent an event that cannot be read: {error}") from None


def _request(options: argparse.Namespace, path: str, data: bytes) -> urllib.request.Request:
    if not options.url.startswith(("http://", "https://")):
        raise _ServerError(f"--url: {options.url} does not begin with http:// or https://")
    try:
        request = urllib.request.Request(options.url.rstrip("/") + path, data, {"content-type": "application/json"})
        (request.host or "").encode("idna")
        request.selector.encode("ascii")
    except ValueError as error:
        raise _ServerError(f"--url: {error}") from None
    if options.api_key:
        if not (options.api_key.isascii() and options.api_key.isprintable()):
            raise _ServerError("--api-key: it holds characters that a header cannot")
        request.add_header("authorization", f"Bearer {options.api_key}")
    return request


def _message_of(error: urllib.error.HTTPError) -> str:
    try:
        return msgspec.json.decode(error.read(), type=_Refusal).error.message
    except msgspec.DecodeError:
        return f"the server answered {error.code}"


def _hint(status: int, options: argparse.Namespace) -> str:
    """What to do about it, where that is known."""
    url = options.url.rstrip("/")
    if status == 401:
        return " -> " + ("the key of --api-key or VLLM_API_KEY is another" if options.api_key
                         else "give it with --api-key, or as VLLM_API_KEY")
    if status == 404 and not url.endswith("/v1"):
        return f" -> --url is the base address, which mostly ends in /v1: {url}/v1"
    return ""


def _why(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message} -> SSL_CERT_FILE may name its authority's"
    if isinstance(reason, ssl.SSLError):
        return f"{reason} -> does it speak HTTPS, as --url says?"
    return str(getattr(reason, "strerror", None) or reason)
