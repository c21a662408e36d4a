"""`quire chat` and `quire complete`: small streaming clients of a running server, on the standard library alone."""

from __future__ import annotations

import argparse
import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
_DATA = b"data: "
_DONE = b"data: [DONE]"


class _ServerError(Exception):
    pass


def chat(options: argparse.Namespace) -> int:
    messages: list[dict[str, str]] = []
    if options.system_prompt:
        messages.append({"role": "system", "content": options.system_prompt})

    def ask(text: str) -> Iterator[str]:
        asked = {"role": "user", "content": text}
        reply = ""
        for event in _stream(options, "/chat/completions", {"messages": [*messages, asked]}):
            piece = event["choices"][0]["delta"].get("content") or "" if event["choices"] else ""
            reply += piece
            yield piece
        messages.extend([asked, {"role": "assistant", "content": reply}])  # a turn that failed is as if never asked

    return _converse(options, ask)


def complete(options: argparse.Namespace) -> int:
    def ask(text: str) -> Iterator[str]:
        for event in _stream(options, "/completions", {"prompt": text}):
            yield event["choices"][0]["text"] if event["choices"] else ""

    return _converse(options, ask)


def _converse(options: argparse.Namespace, ask: Any) -> int:
    try:
        if options.text is not None:
            _print_reply(ask(options.text))
            return 0
        prompt = "> " if sys.stdin.isatty() else ""
        while True:
            text = input(prompt)
            try:
                _print_reply(ask(text))
            except _ServerError as error:
                if not prompt:
                    raise
                print(f"quire: {error}", file=sys.stderr)
    except EOFError:
        return 0
    except KeyboardInterrupt:
        print()
        return 0 if options.text is None else EXIT_INTERRUPTED
    except _ServerError as error:
        print(f"quire: {error}", file=sys.stderr)
        return EXIT_FAILED


def _print_reply(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _stream(options: argparse.Namespace, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in ("model", "max_tokens", "temperature"):
        if getattr(options, name) is not None:
            body[name] = getattr(options, name)
    request = _request(options, path, msgspec.json.encode(body | {"stream": True}))
    try:
        with urllib.request.urlopen(request) as reply:
            for line in reply:
                if line.strip() == _DONE:
                    return
                if not line.startswith(_DATA):
                    continue  # comments and empty lines
                event = msgspec.json.decode(line[len(_DATA):])
                if "error" in event:
                    raise _ServerError(event["error"]["message"])
                yield event
        raise _ServerError("the reply was cut off: the server or the connection ended before it did")
    except urllib.error.HTTPError as error:
        raise _ServerError(_message_of(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _ServerError(f"{options.url} does not answer: {getattr(error, 'reason', error)}") from None
    except msgspec.DecodeError as error:
        raise _ServerError(f"{options.url} sent an event that cannot be read: {error}") from None


def _request(options: argparse.Namespace, path: str, data: bytes) -> urllib.request.Request:
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
        return str(msgspec.json.decode(error.read())["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"the server answered {error.code}"
