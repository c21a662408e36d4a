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

EXIT_FAILED = 1


class _ServerError(Exception):
    pass


def chat(options: argparse.Namespace) -> int:
    messages: list[dict[str, str]] = []
    if options.system_prompt:
        messages.append({"role": "system", "content": options.system_prompt})

    def ask(text: str) -> Iterator[str]:
        messages.append({"role": "user", "content": text})
        reply = ""
        for event in _stream(options, "/chat/completions", {"messages": messages}):
            piece = event["choices"][0]["delta"].get("content") or "" if event["choices"] else ""
            reply += piece
            yield piece
        messages.append({"role": "assistant", "content": reply})

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
            _print_reply(ask(input(prompt)))
    except (EOFError, KeyboardInterrupt):
        return 0
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
    headers = {"content-type": "application/json"}
    if options.api_key:
        headers["authorization"] = f"Bearer {options.api_key}"
    data = msgspec.json.encode(body | {"stream": True})
    try:
        request = urllib.request.Request(options.url.rstrip("/") + path, data, headers)
        with urllib.request.urlopen(request) as reply:
            for line in reply:
                event_data = line.removeprefix(b"data: ").strip()
                if not event_data or event_data == b"[DONE]":
                    continue
                event = msgspec.json.decode(event_data)
                if "error" in event:
                    raise _ServerError(event["error"]["message"])
                yield event
    except urllib.error.HTTPError as error:
        raise _ServerError(_message_of(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _ServerError(f"{options.url} does not answer: {getattr(error, 'reason', error)}") from None
    except ValueError as error:
        raise _ServerError(f"--url: {error}") from None


def _message_of(error: urllib.error.HTTPError) -> str:
    try:
        return str(msgspec.json.decode(error.read())["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"the server answered {error.code}"
