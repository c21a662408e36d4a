"""What the connections of one worker share: limits, how many each address has open, room for new ones, and the log.

Refuses to know HTTP. Made by `quire.app.worker`; asked by each `protocol.HttpProtocol`.
"""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import structlog

from quire.app.middleware.forwarded import Proxies
from quire.app.settings import ServeSettings
from quire.app.tls import Tls
from quire.app.turns import Turns

log = structlog.get_logger(__name__)

LINES_A_SECOND = 10  # of refusals in the log of a worker
# Of the open files that a worker may have, those that are not for connections; a full worker still answers probes.
SPARE_FILES = 256
NUM_SHED = 16  # idle connections that are closed at once to make room
LOOK_AGAIN_S = 0.1


class Connection(Protocol):
    def is_idle(self) -> bool: ...

    def idle_since(self) -> float:
        """Of an idle connection, by the event loop's clock."""

    def drop(self) -> None: ...


class Connections:
    def __init__(self, settings: ServeSettings, tls: Tls | None, on_refusal: Callable[[str], None],
                 max_open: int = 2**31) -> None:
        """`on_refusal` is told the reason of each; `max_open`: connections, beyond which idle ones are closed."""
        self.settings = settings
        self.tls = tls
        self.turns = Turns()
        self.max_open = max_open
        self._on_refusal = on_refusal
        self._proxies = Proxies(settings.forwarded_allow_ips or [])
        self._open: Counter[str] = Counter()
        self._next_look = 0.0  # for connections that could be closed
        self._lines_left = LINES_A_SECOND
        self._num_unlogged = 0
        self._second: asyncio.TimerHandle | None = None

    def has_limit(self, address: str) -> bool:
        """Whether connections of `address` are counted: those of a proxy are its clients'."""
        return self.settings.max_connections_per_ip > 0 and address not in self._proxies

    def opened(self, address: str) -> bool:
        """Count one more; False, uncounted, if the address has its share. Every True is to be followed by `closed`."""
        address = _counted_as(address)
        if self._open[address] >= self.settings.max_connections_per_ip:
            return False
        self._open[address] += 1
        return True

    def make_room(self, others: Iterable[Connection]) -> bool:
        """Close the connections that have been idle for longest; False where none is."""
        now = asyncio.get_running_loop().time()
        if now < self._next_look:  # looking takes its time, and lately there was none
            return False
        idle = heapq.nsmallest(NUM_SHED, (other for other in others if other.is_idle()),
                               key=lambda other: other.idle_since())
        for connection in idle:
            connection.drop()
        if not idle:
            self._next_look = now + LOOK_AGAIN_S
        self.log("idle connections closed", count=len(idle), max_open=self.max_open)
        return bool(idle)

    def refused(self, reason: str, **fields: Any) -> None:
        """Count a refusal, and log it."""
        self._on_refusal(reason)
        self.log("request refused", reason=reason, **fields)

    def log(self, event: str, **fields: Any) -> None:
        """Log it unless there were many within a second, and then how many."""
        if self._lines_left:
            self._lines_left -= 1
            log.info(event, **fields)
        else:
            self._num_unlogged += 1
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1.0, self._second_over)

    def _second_over(self) -> None:
        if self._num_unlogged:
            log.warning("refusals not logged", count=self._num_unlogged)
        self._lines_left, self._num_unlogged, self._second = LINES_A_SECOND, 0, None

    def closed(self, address: str) -> None:
        address = _counted_as(address)
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


def _counted_as(address: str) -> str:
    """Whoever has one IPv6 address has its whole /64."""
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
