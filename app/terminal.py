"""`quire chat` and `quire complete`: small streaming clients of a running server, on the standard library alone."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from quire.engine.messages import UNREADABLE

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
_DATA = b"data: "
_DONE = b"data: [DONE]"
_HELP = """\
/clear         forget the conversation
/system TEXT   forget it, and tell the model TEXT first; without TEXT, nothing
/help          this list
//...          a message that begins with /
Ctrl-C stops a reply, Ctrl-D ends."""


class _ServerError(Exception):
    pass


class _NobodyAnswers(_ServerError):
    pass


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Refusal(msgspec.Struct):
    error: _Error


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card] = []


class _Talk:
    """What is said so far, and the commands of whoever talks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._messages: list[dict[str, str]] = []
        self._begin(options.system_prompt or "")

    def ask(self, text: str) -> Iterator[_Event]:
        asked = {"role": "user", "content": text}
        reply = ""
        for event in _stream(self._options, "/chat/completions", {"messages": [*self._messages, asked]}):
            reply += _text(event)
            yield event
        self._messages += [asked, {"role": "assistant", "content": reply}]  # one that failed is as if never asked

    def command(self, line: str) -> str | None:
        """What is to be sent, if anything: a line that begins with / is for us."""
        if not line.startswith("/"):
            return line
        if line.startswith("//"):
            return line[1:]
        name, _, text = line[1:].strip().partition(" ")
        if name == "clear":
            self._begin(self._system)
            _tell("forgotten")
        elif name == "system":
            self._begin(text.strip())
            _tell("told first from now on: " + self._system if self._system else "nothing is told first from now on")
        elif name == "help":
            _tell(_HELP)
        else:
            _tell(f"there is no command /{name}; /help lists them, and // begins a message with /")
        return None

    def _begin(self, system: str) -> None:
        self._system = system
        self._messages = [{"role": "system", "content": system}] if system else []


def chat(options: argparse.Namespace) -> int:
    talk = _Talk(options)
    return _converse(options, talk.ask, talk.command)


def complete(options: argparse.Namespace) -> int:
    return _converse(options, lambda text: _stream(options, "/completions", {"prompt": text}), lambda line: line)


def _converse(options: argparse.Namespace, ask: Callable[[str], Iterator[_Event]],
              command: Callable[[str], str | None]) -> int:
    try:
        options.url = _base_url(options)
        if options.text is not None:
            _print_reply(ask(options.text))
        elif sys.stdin.isatty():
            _greet(options)
            _talk(ask, command)
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


def _base_url(options: argparse.Namespace) -> str:
    """With scheme and /v1 where they were left out."""
    if options.port is not None:
        return f"http://127.0.0.1:{options.port}/v1"
    url: str = options.url if "://" in options.url else f"http://{options.url}"
    return url.rstrip("/") + "/v1" if url.count("/") - url.endswith("/") == 2 else url.rstrip("/")


def _greet(options: argparse.Namespace) -> None:
    """Raises _ServerError where nobody is there to talk to; a server that refuses or still loads is."""
    try:
        names = [card.id for card in _decoded(options, _open(options, "/models", None).read(), _Models).data]
        _tell(f"{options.model or ', '.join(names[:1]) or 'a server'} at {options.url}")
    except _NobodyAnswers:
        raise
    except _ServerError as error:
        _tell(f"quire: {error}")
    _tell("/help lists commands; Ctrl-C stops a reply, Ctrl-D ends." if options.command == "chat"
          else "Ctrl-C stops a reply, Ctrl-D ends.")


def _talk(ask: Callable[[str], Iterator[_Event]], command: Callable[[str], str | None]) -> None:
    """With somebody at a terminal, who may go on after a failure."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() the arrow keys
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            text = command(input("> "))
            try:
                if text and text.strip():
                    _tell(_print_reply(ask(text)))
            except KeyboardInterrupt:
                print()
            except _ServerError as error:
                _tell(f"quire: {error}")
    print()


def _tell(text: str) -> None:
    """To whoever sits there, and not to a file that replies go to."""
    print(text, file=sys.stderr)


def _print_reply(events: Iterator[_Event]) -> str:
    """Prints it as it comes; returns how long it was, and how fast."""
    began = time.perf_counter()
    first: float | None = None
    tokens = 0
    for event in events:
        if text := _text(event):
            first = first or time.perf_counter()
            tokens += 1  # unless the server counts them
            print(text, end="", flush=True)
        if event.usage is not None:
            tokens = event.usage.completion_tokens
    print()
    ended = time.perf_counter()
    first = first or ended
    rate = f", then {(tokens - 1) / (ended - first):.1f} tokens/s" if tokens > 1 and ended > first else ""
    return f"({tokens} token{'s' * (tokens != 1)}; the first after {first - began:.2f} s{rate})"


def _text(event: _Event) -> str:
    return "".join(choice.text or choice.delta.content or "" for choice in event.choices)


def _stream(options: argparse.Namespace, path: str, body: dict[str, Any]) -> Iterator[_Event]:
    for name in ("model", "max_tokens", "temperature"):
        if getattr(options, name) is not None:
            body[name] = getattr(options, name)
    try:
        data = msgspec.json.encode(body | {"stream": True, "stream_options": {"include_usage": True}})
    except UnicodeEncodeError:
        raise _ServerError("what was typed is not UTF-8") from None
    with _open(options, path, data) as reply:
        try:
            for line in reply:
                if line.strip() == _DONE:
                    return
                if not line.startswith(_DATA):
                    continue  # comments and empty lines
                event = _decoded(options, line[len(_DATA):], _Event)
                if event.error is not None:
                    raise _ServerError(event.error.message)
                yield event
        except (OSError, http.client.HTTPException) as error:
            raise _ServerError(f"{options.url} does not answer any more: {_why(error)}") from None
    raise _ServerError("the reply was cut off: the server or the connection ended before it did")


def _decoded(options: argparse.Namespace, data: bytes, wanted: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=wanted)
    except UNREADABLE as error:
        raise _ServerError(f"{options.url} sent an event that cannot be read: {error}") from None


def _open(options: argparse.Namespace, path: str, data: bytes | None) -> Any:
    request = _request(options, path, data)
    try:
        return urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        raise _ServerError(_message_of(error) + _hint(error.code, options)) from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        raise _NobodyAnswers(f"{options.url} does not answer: {_why(why)}{_start_hint(why)}") from None


def _request(options: argparse.Namespace, path: str, data: bytes | None) -> urllib.request.Request:
    if not options.url.startswith(("http://", "https://")):
        raise _ServerError(f"--url: {options.url} does not begin with http:// or https://")
    try:
        request = urllib.request.Request(options.url + path, data, {"content-type": "application/json"})
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
    except UNREADABLE:
        return f"the server answered {error.code}"


def _hint(status: int, options: argparse.Namespace) -> str:
    """What to do about it, where that is known."""
    if status == 401:
        return " -> " + ("the key of --api-key or VLLM_API_KEY is another" if options.api_key
                         else "give it with --api-key, or as VLLM_API_KEY")
    if status == 404 and not options.url.endswith("/v1"):
        return f" -> --url is the base address, which mostly ends in /v1: {options.url}/v1"
    return ""


def _start_hint(reason: object) -> str:
    if isinstance(reason, ConnectionRefusedError):
        return " -> start a server with: quire serve; or name where one is with --port or --url"
    return ""


def _why(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message} -> SSL_CERT_FILE may name its authority's"
    if isinstance(reason, ssl.SSLError):
        return f"{reason} -> does it speak HTTPS, as --url says?"
    return str(getattr(reason, "strerror", None) or reason)
