"""`quire top`: its flags, and the loop that looks, draws and listens for a key."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from quire.app.command_parser import CommandParser
from quire.app.peer import Peer, with_scheme
from quire.app.top.figures import Figures, History
from quire.app.top.server_state import Asker, ServerState
from quire.app.top.view import Text, page, summary
from quire.engine.exit_codes import EXIT_CONFIG

EXIT_UNREACHABLE = 1
_QUIT = frozenset(b"qQ\x03\x04")
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor; back
_HOME, _END_OF_LINE, _REST = "\x1b[H", "\x1b[K\r\n", "\x1b[J"
_EPILOG = """\
Figures are those of /metrics: with keys it needs one with the admin right, which also shows the use and the limits of
each key; or the address of the server's --admin-port. Percentiles are worked out from histograms, so they are as fine
as their buckets. q ends it. Without a terminal, a line is printed at each look. NO_COLOR is respected."""


def main(argv: list[str]) -> int:
    options = _parse(argv)
    try:
        peer = Peer(options.url, options.api_key)
    except ValueError as error:
        print(f"quire top: --url: {error}", file=sys.stderr)
        return EXIT_CONFIG
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if options.once:
        return _once(peer, options)
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return _watch(peer, options)
    return _log(peer, options)


class _Watcher:
    """The server's state at each look, with the figures of all looks so far."""

    def __init__(self, peer: Peer) -> None:
        self._asker = Asker(peer)
        self._history = History()

    def look(self) -> tuple[ServerState, Figures | None]:
        state = self._asker.ask()
        return state, None if state.scrape is None else self._history.add(time.monotonic(), state.scrape)


def _once(peer: Peer, options: argparse.Namespace) -> int:
    """Percentiles since the server's start, and the rates of one interval."""
    watcher = _Watcher(peer)
    state, ever = watcher.look()
    figures = None
    if ever is not None:
        time.sleep(options.interval)
        state, figures = watcher.look()
    if figures is not None and ever is not None:
        figures = Figures(**{**vars(figures), "window_s": ever.window_s, "cache_hits": ever.cache_hits,
                             "refused": ever.refused, "aborted": ever.aborted, "latencies": ever.latencies,
                             "keys": ever.keys})
    _print(page(peer.address, state, figures, shutil.get_terminal_size().columns if sys.stdout.isatty() else 200))
    return EXIT_UNREACHABLE if state.problem else 0


def _log(peer: Peer, options: argparse.Namespace) -> int:
    watcher = _Watcher(peer)
    while True:
        state, figures = watcher.look()
        print(time.strftime("%H:%M:%S"), summary(state, figures), flush=True)
        time.sleep(options.interval)


def _watch(peer: Peer, options: argparse.Namespace) -> int:
    watcher = _Watcher(peer)
    with _screen() as keyboard:
        while True:
            state, figures = watcher.look()
            _draw(page(peer.address, state, figures, shutil.get_terminal_size().columns))
            if _wants_to_quit(keyboard, options.interval):
                return 0


@contextmanager
def _screen() -> Iterator[int]:
    """Keys come one by one and unseen; what was on the terminal is there again afterwards."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        sys.stdout.write(_ENTER)
        yield keyboard
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _wants_to_quit(keyboard: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while (left_s := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([keyboard], [], [], left_s)
        if ready:
            typed = os.read(keyboard, 64)
            if not typed or _QUIT & set(typed):
                return True
    return False


def _draw(lines: list[Text]) -> None:
    shown = lines[:max(1, shutil.get_terminal_size().lines - 1)]
    sys.stdout.write(_HOME + "".join(_styled(line) + _END_OF_LINE for line in shown) + _REST)
    sys.stdout.flush()


def _print(lines: list[Text]) -> None:
    for line in lines:
        print(_styled(line) if sys.stdout.isatty() else line.text)


def _styled(line: Text) -> str:
    return line.text if not line.style or os.environ.get("NO_COLOR") else f"\x1b[{line.style}m{line.text}\x1b[0m"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="quire top", description="Watch a running server.", epilog=_EPILOG,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help=(
        "the server's address, also unix:PATH; http:// may be left out [%(default)s]"))
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY", "").partition(",")[0],
                        help="the key, one with the admin right; also VLLM_API_KEY")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between looks [%(default)g]")
    parser.add_argument("--once", action="store_true", help="print the state once and end; 1 where nobody answers")
    options = parser.parse_args(argv)
    if not 0.1 <= options.interval <= 3600:
        parser.error(f"--interval: {options.interval} is not in 0.1..3600 seconds")
    options.url = with_scheme(options.url)
    assert isinstance(options, argparse.Namespace)
    return options
