"""Figures of a window, their page, and the program in a terminal and without one, against a server of known answers."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quire.app.cli import main
from quire.app.peer import Peer
from quire.app.top import server_state
from quire.app.top.exposition import Exposition
from quire.app.top.figures import Figures, History
from quire.app.top.server_state import Asker, ServerState
from quire.app.top.view import page, sparkline, summary

ADMIN = "an-admin-key-of-some-length"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def scrape(tokens_out: int, running: int = 1, fast: int = 0, slow: int = 0, hits: int = 0, key: int = 0) -> str:
    lines = [f"vllm:generation_tokens_total {tokens_out}", f"vllm:prompt_tokens_total {2 * tokens_out}",
             f'vllm:num_requests_running{{engine="0"}} {running}', 'vllm:num_requests_running{engine="1"} 2',
             'vllm:kv_cache_usage_perc{engine="0"} 0.5', 'vllm:kv_cache_usage_perc{engine="1"} 0.25',
             f"vllm:prefix_cache_hits_total {hits}", f"vllm:prefix_cache_queries_total {2 * tokens_out}",
             f'quire:key_requests_total{{key="ann"}} {key}', f'quire:key_output_tokens_total{{key="ann"}} {10 * key}',
             'quire:key_requests_total{key="unused"} 0',
             f'vllm:time_to_first_token_seconds_bucket{{le="0.1"}} {fast}',
             f'vllm:time_to_first_token_seconds_bucket{{le="0.2"}} {fast + slow}',
             f'vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {fast + slow}']
    return "\n".join(lines) + "\n"


def figures_of(*scrapes: tuple[float, str]) -> Figures:
    history = History()
    for now_s, text in scrapes:
        figures = history.add(now_s, Exposition(text))
    return figures


def test_levels_are_of_now_rates_of_the_last_two_looks_and_percentiles_of_a_minute() -> None:
    figures = figures_of((0, scrape(0, fast=1000)), (50, scrape(100, fast=1000, slow=2)),
                         (100, scrape(200, fast=1000, slow=4, key=3, hits=90)),
                         (110, scrape(250, running=4, fast=1000, slow=12, hits=140, key=5)))
    assert figures.window_s == 60  # from the look at 50 s
    assert (figures.running, figures.kv_usage, figures.out_per_s, figures.in_per_s) == (6, 0.375, 5, 10)
    latency = figures.latencies["first token"]
    assert (latency.num, latency.percentiles[0]) == (10, pytest.approx(0.15))
    assert figures.cache_hits == 140 / 300
    assert {name: use.tokens_out for name, use in figures.keys.items()} == {"ann": 50}
    assert figures.histories["running"] == [3, 3, 3, 6]


def test_a_server_that_began_anew_has_no_negative_rates() -> None:
    figures = figures_of((0, scrape(1000, fast=9)), (10, scrape(20, fast=2)))
    assert figures.window_s is None and figures.out_per_s is None
    assert figures.latencies["first token"].num == 2
    assert figures_of((0, scrape(1000)), (10, scrape(20)), (12, scrape(30))).out_per_s == 5


def test_the_page_says_what_there_is_and_fits() -> None:
    figures = figures_of((0, scrape(0)), (10, scrape(1234_0, running=10, slow=4, hits=1234, key=3)))
    ready = ServerState(readiness=server_state.Readiness("ready"))
    lines = [line.text for line in page("http://h", ready, figures, 60)]
    assert lines[:2] == ["quire  http://h", "ready"]
    assert "tokens/s out           1,234  █" in lines and "KV cache in use          38%  ▄▄" in lines
    assert "first token           150 ms    190 ms    199 ms         4" in lines
    assert "prefix cache hits         5%  last 10 s" in lines
    assert max(map(len, lines)) <= 60
    loading = ServerState(readiness=server_state.Readiness("loading", "weights", 0.25, 90.0), no_scrape="no", load=7)
    assert [line.text for line in page("http://h", loading, None)][1:] == [
        "loading: weights 25%, about 1 min 30 s left", "[" + "#" * 10 + "." * 30 + "]", "requests in flight  7",
        "no figures: no"]
    assert summary(ServerState("gone"), None) == "gone"


def test_a_sparkline_is_of_the_last_values_from_zero_up() -> None:
    assert sparkline([9, 0, 1, 2], 3) == "▁▅█"
    assert sparkline([0.0, 0.5, 1.0], 9, most=1.0) == "▁▅█"
    assert (sparkline([], 5), sparkline([0, 0], 5), sparkline([1], -3)) == ("", "▁▁", "")


@contextmanager
def serving(answers: dict[str, tuple[int, str]]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that it was asked for. Paths of /admin are there for ADMIN alone."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, text = answers.get(self.path, (404, "{}"))
            if self.path.startswith("/admin") and self.headers["authorization"] != f"Bearer {ADMIN}":
                status, text = 403, '{"error": {"message": "no admin right"}}'
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


ANSWERS = {"/readyz": (200, '{"status": "ready"}'), "/metrics": (200, scrape(100, slow=3, key=1)),
           "/admin/status": (200, '{"version": "1.2", "uptime_s": 61, "settings": {"model": "m"}}'),
           "/admin/keys": (200, '{"keys": [{"name": "ann", "requests_per_minute": 60, "max_concurrent": 2}]}'),
           "/load": (200, '{"server_load": 5}')}


def test_admin_is_asked_with_a_key_only_seldom_and_not_after_a_refusal() -> None:
    with serving(ANSWERS) as (url, asked):
        clock = Clock()
        asker = Asker(Peer(url, ADMIN), clock)
        for clock.now in (0.0, 1.0, 59.0):
            state = asker.ask()
        assert state.admin is not None and state.admin.version == "1.2"
        assert (state.keys["ann"].max_concurrent, asked.count("/admin/status")) == (2, 1)
        clock.now = 61.0
        asker.ask()
        assert asked.count("/admin/status") == 2
        asked.clear()
        for key in ("", "another-key"):
            asker = Asker(Peer(url, key), clock)
            for clock.now in (100.0, 200.0):
                assert asker.ask().admin is None
        assert asked.count("/admin/status") == 1


def test_without_the_right_to_figures_the_load_is_shown() -> None:
    with serving({**ANSWERS, "/metrics": (403, '{"error": {"message": "no admin right"}}')}) as (url, _):
        state = Asker(Peer(url)).ask()
    assert (state.load, state.no_scrape, state.scrape) == (5, "no admin right", None)
    with serving({**ANSWERS, "/metrics": (200, "{{{")}) as (url, _):
        assert Asker(Peer(url)).ask().no_scrape.startswith("/metrics cannot be read")


def test_once_prints_the_page_with_percentiles_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := io.TextIOWrapper(io.BytesIO(), "utf-8"))
    with serving(ANSWERS) as (url, _):
        assert main(["top", "--url", url, "--api-key", ADMIN, "--once", "--interval", "0.1"]) == 0
    out.seek(0)
    shown = out.read()
    assert shown.startswith(f"quire  1.2  m  up 1 min 1 s  {url}\nready\n") and "\x1b" not in shown
    assert "first token           150 ms    190 ms    199 ms         3" in shown
    assert "ann                                1           0          10  60 requests/min, 2 at once" in shown
    assert main(["top", "--url", "127.0.0.1:1", "--once"]) == 1
    for address in ("ftp://h", "two words", "h/\u00fc", "h:x", ""):
        assert main(["top", "--url", address, "--once"]) == 2, address


def test_what_went_wrong_is_told_to_its_end_in_a_narrow_terminal() -> None:
    said = "http://a-host-with-a-long-name.example:8000 does not answer: Connection refused"
    lines = [line.text for line in page("", ServerState(said), None, 20)[1:]]
    assert "".join(lines).replace(" ", "") == said.replace(" ", "") and max(map(len, lines)) <= 20


def start(url: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quire", "top", "--url", url, "--interval", "0.1"]
    return subprocess.Popen(command, env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"}, **options)


def test_a_terminal_gets_a_page_until_q_is_typed_and_is_as_before() -> None:
    with serving(ANSWERS) as (url, _):
        keyboard, terminal = pty.openpty()
        process = start(url, stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)
        shown, deadline = b"", time.monotonic() + 20
        while shown.count(b"\x1b[H") < 3:
            assert time.monotonic() < deadline, shown
            if select.select([keyboard], [], [], 0.1)[0]:
                shown += os.read(keyboard, 65536)
        os.write(keyboard, b"q")
        assert process.wait(10) == 0
        shown += os.read(keyboard, 65536)
        os.close(keyboard)
    assert shown.startswith(b"\x1b[?1049h\x1b[?25l") and shown.endswith(b"\x1b[?25h\x1b[?1049l")
    assert b"between tokens" in shown and b"\x1b[1m" not in shown


def test_without_a_terminal_every_look_is_a_line() -> None:
    with serving(ANSWERS) as (url, _):
        process = start(url, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(2)]
        process.kill()
        process.communicate()
    assert all(" ready, running 3, waiting -, kv 38%" in line and "first token p50 " in line for line in lines)
