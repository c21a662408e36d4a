"""gunicorn's worker class: uvicorn's, with what it lacks for long streams, for TLS and for dying in time.

It tells gunicorn that it lives also while it drains, ends its drain before gunicorn would kill it, and does not outlive
its master or the launcher. Which protocol and which TLS context a listening socket gets is decided here.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from gunicorn.arbiter import Arbiter
from uvicorn import Config, Server
from uvicorn_worker import UvicornWorker

from quire.app.connections import SPARE_FILES, Connections
from quire.app.probe import is_probe_socket
from quire.app.protocol import LINGER_S, HttpProtocol
from quire.engine.lifeline import die_with_parent

if TYPE_CHECKING:
    from quire.app.service import Service  # at run time only workers load it, not the master, which loads this module

log = structlog.get_logger(__name__)

BEAT_S = 1.0
# The loop accepts one connection of a socket each time around, and serves those before it in between: a probe behind
# 400 others would wait until all of these are served. Descriptors of one socket count as so many.
NUM_ACCEPTORS = 64
# How long the event loop waits for its turn while another thread runs Python; 5 ms unless said otherwise.
SWITCH_S = 0.001
# gunicorn kills GRACE_S after the last stream's time is up; uvicorn cancels what is left half way there.
GRACE_S = 6


class HttpWorker(UvicornWorker):  # type: ignore[misc]
    # Proxies are believed by quire.app.middleware.forwarded, not by uvicorn, which takes a "*" and trusts loopback.
    CONFIG_KWARGS = {"loop": "uvloop", "ws": "none", "lifespan": "on", "interface": "asgi3",  # noqa: RUF012
                     "server_header": False, "access_log": False, "proxy_headers": False}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.timeout_graceful_shutdown = self.cfg.graceful_timeout - GRACE_S // 2
        self.config.callback_notify = None  # uvicorn's beat stops in a drain; ours does not

    def init_process(self) -> None:
        lifeline = os.environ.get("QUIRE_LIFELINE")
        die_with_parent(int(lifeline) if lifeline else None)
        sys.setswitchinterval(SWITCH_S)
        super().init_process()

    async def _serve(self) -> None:
        service: Service = self.wsgi.state.service
        tls = service.tls
        self.config.app = self.wsgi
        self.config.timeout_keep_alive = service.settings.serve.keep_alive_timeout
        self.config.http = partial(HttpProtocol, connections=Connections(
            service.settings.serve, tls, service.metrics.connection_refused,
            resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES))
        server = _Server(self.config, service)
        self._install_sigquit_handler()
        beat = asyncio.create_task(self._beat())
        try:
            await server.serve(sockets=self.sockets)
        finally:
            beat.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _beat(self) -> None:
        while True:
            try:
                self.notify()
            except Exception:  # a disk that fails may mend before gunicorn takes this worker for hung
                log.exception("heartbeat failed")
            await asyncio.sleep(BEAT_S)


class _Server(Server):
    """TLS on every socket save the launcher's own, and with time limits on its handshakes."""

    def __init__(self, config: Config, service: Service) -> None:
        super().__init__(config)
        self._tls = service.tls
        self._handshake_timeout_s = service.settings.serve.header_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        protocol: Any = self.config.http_protocol_class
        new_connection = partial(protocol, config=self.config, server_state=self.server_state,
                                 app_state=self.lifespan.state)
        self.servers = []
        for listener in sockets or []:
            if not is_probe_socket(listener):
                for _ in range(NUM_ACCEPTORS - 1):
                    self.servers.append(await self._listen(listener.dup(), new_connection))
            self.servers.append(await self._listen(listener, new_connection))
        self.started = True

    async def _listen(self, listener: socket.socket, new_connection: Any) -> asyncio.Server:
        tls: dict[str, Any] = {}
        if self._tls is not None and not is_probe_socket(listener):
            tls = {"ssl": self._tls.context, "ssl_handshake_timeout": self._handshake_timeout_s,
                   "ssl_shutdown_timeout": LINGER_S}
        return await asyncio.get_running_loop().create_server(
            new_connection, sock=listener, backlog=self.config.backlog, **tls)
