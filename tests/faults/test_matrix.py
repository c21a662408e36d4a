"""The cells of the fault matrix that no other test has, on real servers; and that the matrix is whole.

A server lives through all states of its fault: it loads, idles, streams and drains, and is struck in each.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
import pytest
import trustme

from tests.e2e.server import KEY, until
from tests.e2e.test_tls import Secured, put
from tests.e2e.test_tls import _Stream as SecureStream
from tests.faults.hooked.sitecustomize import FAULTY_TEXT_TOKEN
from tests.faults.matrix import DRAINING, IDLE, LIFE, LOADING, MATRIX_ROWS, STATES, STREAMING, Never, Tried
from tests.faults.strikes import FAULTS, Fault
from tests.faults.struck import ROOT, Setting, Struck, started

# The matrix itself


@cache
def names_of_tests(file: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / file).read_text()).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def cells() -> Iterator[tuple[str, str, Tried | Never]]:
    for fault, row in MATRIX_ROWS.items():
        for state, cell in row.items():
            yield fault, state, cell


def test_every_cell_is_filled_and_every_test_is_there() -> None:
    for fault, row in MATRIX_ROWS.items():
        assert sorted(row) == sorted(STATES), fault
    for fault, state, cell in cells():
        if isinstance(cell, Never):
            assert cell.because
            continue
        file, _, test = cell.by.partition("::")
        assert test in names_of_tests(file), f"{fault}, {state}: no {cell.by}"
        assert cell.outcome and 0 < cell.within_s <= 120
        if cell.by == LIFE:
            assert fault in FAULTS, f"{fault}: nobody knows how to bring it about"
    assert {fault for fault, _, cell in cells() if isinstance(cell, Tried) and cell.by == LIFE} == set(FAULTS)
    assert {(fault, state) for fault, state, cell in cells() if isinstance(cell, Tried)
            and cell.by.endswith("::test_what_ends_a_server")} == set(ENDS)


# A whole life


def lives() -> Iterator[tuple[str, frozenset[str]]]:
    """Faults, and the states in which one server is struck."""
    for name, fault in FAULTS.items():
        own = [state for state in STATES if isinstance(cell := MATRIX_ROWS[name][state], Tried) and cell.by == LIFE]
        yield from [(name, frozenset([state])) for state in own] if fault.for_good else [(name, frozenset(own))]


class Blows:
    """Strikes a server in the states that are given, and looks at the clock."""

    def __init__(self, struck: Struck, name: str, states: frozenset[str]) -> None:
        self._struck, self._name, self._states = struck, name, states
        self._fault: Fault = FAULTS[name]

    @contextmanager
    def strike(self, state: str) -> Iterator[float]:
        """The block waits for the outcome, for as long as it is given."""
        cell = MATRIX_ROWS[self._name][state]
        if state not in self._states or not isinstance(cell, Tried):
            yield 90.0
            return
        before = 0.0
        if self._fault.strike is not None:
            before = self._fault.seen(self._struck)
            self._fault.strike(self._struck)
        begun = time.monotonic()
        yield cell.within_s
        took_s = time.monotonic() - begun
        if self._fault.strike is not None or state != LOADING:  # what lasts may take requests to be seen
            until(lambda: self._fault.seen(self._struck) > before)
        print(f"{self._name}, {state}: {cell.outcome}, {took_s:.1f} s of {cell.within_s:g} s")
        assert took_s <= cell.within_s


QUICK = ("broken frames to the engine",)  # not in the long suite alone


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("name", "states"), [
    pytest.param(name, states, id=f"{name}: {', '.join(state for state in STATES if state in states)}",
                 marks=[] if name in QUICK else [pytest.mark.slow])
    for name, states in lives()])
def test_a_life_with(name: str, states: frozenset[str]) -> None:
    with started(FAULTS[name].setting) as struck:
        blows = Blows(struck, name, states)
        struck.load()
        with blows.strike(LOADING) as within_s:
            struck.get_ready(within_s)
        struck.end_well(struck.stream())
        with blows.strike(IDLE):
            struck.end_well(struck.stream())
        streams = [struck.stream() for _ in range(2)]
        with blows.strike(STREAMING):
            struck.end_well(*streams)
        until(lambda: struck.status("/readyz") == 200, 60)
        streams = [struck.stream() for _ in range(2)]
        struck.drain()
        with blows.strike(DRAINING) as within_s:
            struck.end_well(*streams)
            assert struck.end(within_s) == 0


# What ends a server


def _signal_launcher(number: signal.Signals) -> Callable[[Struck], None]:
    return lambda struck: struck.server.process.send_signal(number)


ENDS: dict[tuple[str, str], tuple[Callable[[Struck], None], int]] = {
    ("SIGTERM", IDLE): (_signal_launcher(signal.SIGTERM), 0),
    ("SIGTERM", LOADING): (_signal_launcher(signal.SIGTERM), 0),
    ("SIGKILL of the launcher", IDLE): (_signal_launcher(signal.SIGKILL), -signal.SIGKILL),
    ("SIGKILL of the engine", LOADING): (lambda struck: os.kill(struck.engine, signal.SIGKILL), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "state"), list(ENDS))
def test_what_ends_a_server(fault: str, state: str) -> None:
    strike, code = ENDS[fault, state]
    cell = MATRIX_ROWS[fault][state]
    assert isinstance(cell, Tried)
    with started(Setting()) as struck:
        struck.load()
        if state == IDLE:
            struck.get_ready()
        begun = time.monotonic()
        strike(struck)
        assert struck.end(cell.within_s) == code
        print(f"{fault}, {state}: {cell.outcome}, {time.monotonic() - begun:.1f} s of {cell.within_s:g} s")
        if code == 3:
            assert struck.server.events("giving up")[0]["reason"] == "the engine could not start"


@pytest.mark.slow
def test_a_worker_killed_in_a_drain() -> None:
    """Its own streams are cut, as nobody can go on with them; the server ends all the same."""
    cell = MATRIX_ROWS["SIGKILL of an HTTP worker"][DRAINING]
    assert isinstance(cell, Tried)
    with started(Setting()) as struck:
        struck.get_ready()
        stream = struck.stream()
        struck.drain()
        os.kill(struck.workers[0], signal.SIGKILL)
        stream.result()
        assert stream.error is not None
        assert struck.end(cell.within_s) == 0


# What strikes one of several


@pytest.mark.slow
def test_a_fault_in_one_requests_text_is_its_own() -> None:
    """In the stream of text, and in a drain."""
    with started(Setting(takes_orders=True, flags=("--drain-delay", "10"))) as struck:
        struck.get_ready()
        for draining in (False, True):
            if draining:
                struck.drain()
            stream = struck.stream()
            reply = httpx.post(f"{struck.server.url}/v1/completions", timeout=30, headers={
                "authorization": f"Bearer {KEY}"}, json={"prompt": [7, 8, FAULTY_TEXT_TOKEN], "max_tokens": 5})
            assert reply.status_code == 500, reply.text
            assert "pretended" not in reply.text, "what went wrong is for the log alone"
            struck.end_well(stream)
        assert struck.end(30) == 0
        assert "no text can be made of this (pretended)" in "".join(struck.server.lines)


@pytest.mark.slow
def test_a_certificate_swapped_in_a_drain(tmp_path: Path) -> None:
    authority = trustme.CA()
    put(tmp_path, authority.issue_cert("localhost", "127.0.0.1"))
    flags = ("--ssl-certfile", f"{tmp_path}/cert.pem", "--ssl-keyfile", f"{tmp_path}/key.pem", "--drain-delay", "10")
    with started(Setting(flags=flags)) as struck:
        struck.server.url = struck.server.url.replace("http:", "https:")
        until(lambda: struck.server.events("ready"), 90)
        secured = Secured(struck.server, tmp_path, authority)
        before = secured.get("/healthz")[2]
        stream = SecureStream(secured, max_tokens=60)
        struck.server.process.send_signal(signal.SIGTERM)
        until(lambda: json.loads(secured.get("/readyz")[1]) == {"status": "draining"})
        secured.put(authority.issue_cert("localhost", "127.0.0.1"))
        until(lambda: secured.get("/healthz")[2] != before, 9)
        assert stream.finish() >= 60
        assert struck.end(60) == 0
