"""The engines behind one front: a client each, and the choice between them where there are several.

They open together: until all were ready once there is no capacity as configured, afterwards one is enough. Requests
whose engine is gone for good go on at another. Used by `AsyncLLMEngine`; the choice itself is `routing`'s.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from functools import partial

import structlog

from quire.engine.errors import EngineDeadError, OverloadedError
from quire.engine.frontend.client import EngineClient
from quire.engine.frontend.request import Request
from quire.engine.frontend.routing import Router, is_limited
from quire.engine.messages import EngineInfo

log = structlog.get_logger(__name__)

QUIET_S = 5.0  # a ready engine speaks every second; from one that does not, new requests keep away where they can


class EngineGroup:
    def __init__(self, addresses: Sequence[str], *, prefix_caching: bool = True, opened: bool = False) -> None:
        """`opened`: all engines were ready before this front was there."""
        several = len(addresses) > 1
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.clients = [EngineClient(address, partial(self._changed, place), self._broke,
                                     {"engine": place} if several else {})
                        for place, address in enumerate(addresses)]
        self.info: EngineInfo | None = None  # what holds for every engine; None until they open
        self._prefix_caching = prefix_caching
        self._opened = opened
        self._ids = itertools.count(1)
        self._router = Router(len(addresses), os.getpid()) if several else None

    @property
    def state(self) -> str:
        """As a client's, those that are gone left out; "ready" while one is, once they have opened."""
        states = {client.state for client in self.clients} - {"gone"}
        if self.info is not None and "ready" in states:
            return "ready"
        if not states:
            return "gone"
        return "down" if states == {"down"} else "loading"

    @property
    def loading(self) -> tuple[str, float]:
        """Phase and fraction done of the one that is furthest behind."""
        return self._last.loading

    @property
    def load_eta_s(self) -> float | None:
        return self._last.load_progress.eta_s(time.monotonic())

    @property
    def silent_s(self) -> float:
        """The longest that a ready engine has said nothing."""
        return max(client.silent_s for client in self.clients)

    @property
    def num_restarts(self) -> int:
        return sum(client.num_restarts for client in self.clients)

    def require_info(self) -> EngineInfo:
        """`info`. Raises OverloadedError before they open, EngineDeadError if they never will."""
        if self.info is None:
            for client in self.clients:
                client.require_info()
            raise AssertionError("engines that were all ready have opened")
        return self.info

    async def wait_ready(self) -> EngineInfo:
        """Until all are. Raises EngineDeadError where that will never be."""
        await asyncio.gather(*(client.wait_ready() for client in self.clients))
        return self.require_info()

    async def watch(self) -> None:
        """Runs for as long as all connections do. Raises EngineDeadError when one of them broke."""
        await asyncio.shield(self._broken)

    def new_ids(self, count: int) -> list[int]:
        """Sample ids never used before on any connection of this group."""
        return [next(self._ids) for _ in range(count)]

    async def submit(self, request: Request) -> EngineClient:
        """Send `request` to one engine, whose client is returned; raises what `EngineClient.submit` raises."""
        router = self._router
        if router is None:
            client = self.clients[0]
            await client.submit(request)
            return client
        while True:
            client = self.clients[self._place(router, request)]
            try:
                if await client.submit(request):
                    return client
            except OverloadedError as error:
                if not error.own_limit:
                    error.closed_s = 0.0  # another engine's queue may have room
                raise
            request.take_back()

    def abort(self, request: Request) -> None:
        """Drop what is unfinished of `request`, wherever it is. Does nothing to a finished one."""
        for client in self.clients:
            client.abort(request)

    async def lose(self, place: int, error: EngineDeadError, *, after_kill: bool = False, opened: bool = False) -> None:
        """The engine there is gone for good. Its requests go on at another; where none is left, or before they opened,
        all ends with `error`.

        `opened`: all were ready before, whether or not this front heard of it.
        """
        lost = self.clients[place]
        if lost.state == "gone":
            return
        await lost.last_words()
        self._opened = self._opened or opened
        router = self._router
        if router is None or not self._opened or all(client.state == "gone" for client in self.clients
                                                     if client is not lost):
            self.fail_all(error)
            return
        accepted = lost.give_up(error, after_kill=after_kill)
        self._changed(place)
        for request in accepted:
            self.clients[self._place(router, request)].adopt(request)
        log.warning("engine is gone for good", engine=place, requests_moved=len(accepted))

    def fail_all(self, error: EngineDeadError) -> None:
        """The engines are gone for good, as the last of them is: every request, and every later one, ends with `error`.
        """
        self.info = None
        for client in self.clients:
            client.fail_all(error)

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self.clients))

    def _place(self, router: Router, request: Request) -> int:
        ready = [place for place, client in enumerate(self.clients) if client.state == "ready"]
        if not ready:  # those that may come back
            ready = [place for place, client in enumerate(self.clients) if client.state != "gone"]
        if is_limited(request.key):  # one that is merely slow keeps it, and its counts hold
            return router.home(request.key.name, ready)
        lively = [place for place in ready if self.clients[place].silent_s < QUIET_S]
        reusable = request.prompt_token_ids if self._prefix_caching else []
        return router.choose(reusable, request.cache_salt, [client.load.total for client in self.clients],
                             lively or ready)

    def _broke(self, error: EngineDeadError) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)
            self._broken.exception()  # asyncio is not to complain where nobody watches

    @property
    def _last(self) -> EngineClient:
        behind = [client for client in self.clients if client.state not in ("ready", "gone")]
        return min(behind or self.clients, key=lambda client: client.loading[1])

    def _changed(self, place: int) -> None:
        """The engine there got ready, or was lost."""
        infos = [client.info for client in self.clients if client.info is not None]
        self._opened = self._opened or len(infos) == len(self.clients)
        if self._opened and infos:
            self.info = min(infos, key=lambda info: info.max_model_len)
        if self._router is None:
            return
        if self.clients[place].state != "ready":
            self._router.forget(place)
        if any(client.state == "ready" for client in self.clients):
            for client in self.clients:
                if client.state != "ready":
                    client.displace()
