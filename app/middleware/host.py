"""Keeps web pages out of a server without keys: whoever may open its port may use it, and a browser on the same machine
can be made to open it by a name that somebody else's DNS points there (rebinding).

Such a page must come by that name, so a server that anyone may reach by its address answers to addresses and to its own
name alone. Refuses to know keys; told by the application which paths are everybody's.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.app.errors import ApiError
from quire.app.keys.ring import KeyRing
from quire.app.telemetry.record import RequestRecord
from quire.app.worker_settings import WorkerSettings


class HostMiddleware:
    def __init__(self, app: ASGIApp, settings: WorkerSettings, keys: KeyRing, public: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._public = public
        self._anyone = settings.serve.allow_public_without_key
        self._admin_port = settings.admin_port
        self._names = {"localhost", settings.serve.address.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._anyone and not self._keys.required:
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises ApiError (403)."""
        record: RequestRecord = scope["state"]["record"]
        port = (scope.get("server") or ("", None))[1]
        if port is None or port == self._admin_port or record.path in self._public:
            return  # a Unix socket, which no browser opens; the admin port, which serves metrics to scrapers; probes
        host = Headers(scope=scope).get("host", "")
        name = _name(host).lower()
        if name in self._names or _is_address(name):
            return
        raise ApiError(403, f"The header Host is {host[:100]!r}, and without API keys this server answers only to an "
                       "address, localhost or its --host: a web page could otherwise use it through a browser. Give it "
                       "a key (VLLM_API_KEY), or say --allow-public-without-key if anyone may use it.", reason="host")


def _name(host: str) -> str:
    """`a`, `a:80`, `[::1]`, `[::1]:80`: without port and brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return not name  # HTTP/1.0 may come without; a browser never does
    return True
