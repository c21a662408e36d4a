"""Asks a server how it is: its probe, its metrics and, with an admin key, /admin. Each part may be refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire.app.peer import Lost, Peer, Reply, Unreachable, message_of
from quire.app.top.exposition import Exposition
from quire.engine.messages import UNREADABLE

ANSWER_S = 3.0
ADMIN_S = 60.0


class Readiness(msgspec.Struct):
    status: str = ""
    phase: str = ""
    fraction: float = 0.0
    eta_s: float | None = None
    engines_gone: list[int] = []


class _Engine(msgspec.Struct):
    state: str = ""


class AdminStatus(msgspec.Struct):
    version: str = ""
    uptime_s: float = 0.0
    settings: dict[str, Any] = {}
    engines: list[_Engine] = []


class KeyLimits(msgspec.Struct):
    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    expired: bool = False


class _Keys(msgspec.Struct):
    keys: list[KeyLimits] = []


@dataclass(frozen=True)
class ServerState:
    problem: str = ""  # why nothing at all is known
    readiness: Readiness = field(default_factory=Readiness)
    scrape: Exposition | None = None
    no_scrape: str = ""  # why there are no figures
    load: int | None = None  # requests in flight, where there are no figures
    admin: AdminStatus | None = None
    keys: dict[str, KeyLimits] = field(default_factory=dict)


class Asker:
    """Of one server. /admin is asked seldom, with a key only, and not again once it refused: each time is a line in the
    audit log.
    """

    def __init__(self, peer: Peer, clock: Callable[[], float] = time.monotonic) -> None:
        self._peer = peer
        self._clock = clock
        self._admin: AdminStatus | None = None
        self._keys: dict[str, KeyLimits] = {}
        self._next_admin = clock() if peer.headers else math.inf

    def ask(self) -> ServerState:
        peer, readiness = self._peer, Readiness()
        try:
            probe = peer.get("/readyz", ANSWER_S)
            readiness = _decoded(probe, Readiness) or Readiness(
                "answers" if probe.status == 404 else f"HTTP {probe.status}")
            metrics = peer.get("/metrics", ANSWER_S)
            if metrics.status == 200:
                scrape, why = Exposition(metrics.body.decode()), ""
            else:
                scrape, why = None, message_of(metrics)
            load = _load(peer.get("/load", ANSWER_S)) if scrape is None else None
            self._ask_admin()
        except (Unreachable, Lost) as error:
            return ServerState(f"{peer.address} does not answer: {error}")
        except ValueError as error:
            return ServerState(readiness=readiness, no_scrape=f"/metrics cannot be read: {error}")
        return ServerState("", readiness, scrape, why, load, self._admin, self._keys)

    def _ask_admin(self) -> None:
        if (now := self._clock()) < self._next_admin:
            return
        self._admin = _decoded(self._peer.get("/admin/status", ANSWER_S), AdminStatus)
        keys = None if self._admin is None else _decoded(self._peer.get("/admin/keys", ANSWER_S), _Keys)
        self._keys = {key.name: key for key in keys.keys} if keys else {}
        self._next_admin = math.inf if self._admin is None else now + ADMIN_S


def _load(reply: Reply) -> int | None:
    found = _decoded(reply, dict[str, int]) if reply.status == 200 else None
    return None if found is None else found.get("server_load")


def _decoded(reply: Reply, wanted: Any) -> Any:
    """None where it is a refusal or none of ours."""
    try:
        return msgspec.json.decode(reply.body, type=wanted) if reply.status in (200, 503) else None
    except UNREADABLE:
        return None
