"""Takes the client's address and scheme from X-Forwarded-For and X-Forwarded-Proto, where a named proxy sent them.

What a proxy says is believed up to the first address that is no proxy of ours, read from the right: whatever stands to
the left of it, the client may have written itself. Outermost of the middleware, so that logs show the client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.app.settings import UNIX_PEERS


class Proxies:
    """Addresses and networks, and UNIX_PEERS for whoever comes through a Unix socket."""

    def __init__(self, names: list[str]) -> None:
        self._networks = [ipaddress.ip_network(name) for name in names if name != UNIX_PEERS]
        self._unix = UNIX_PEERS in names

    def __contains__(self, address: str | None) -> bool:
        """`address` None: it came through a Unix socket."""
        if address is None:
            return self._unix
        parsed = _parse(address) if self._networks else None
        return parsed is not None and any(parsed in network for network in self._networks)


class ForwardedMiddleware:
    def __init__(self, app: ASGIApp, proxies: list[str]) -> None:
        """`proxies` as in `Proxies`."""
        self._app = app
        self._proxies = Proxies(proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _host(scope.get("client")) in self._proxies:
            headers = Headers(scope=scope)
            # One header a proxy or one list for all: the same.
            hops = [hop.strip() for value in headers.getlist("x-forwarded-for") for hop in value.split(",")]
            client = self._first_stranger(hops)
            if client is not None:
                scope["client"] = (client, 0)
            scheme = headers.get("x-forwarded-proto", "")
            if scheme in ("http", "https"):
                scope["scheme"] = scheme
        await self._app(scope, receive, send)

    def _first_stranger(self, hops: list[str]) -> str | None:
        """From the right; the leftmost proxy if there are only proxies; None where there is nothing to believe."""
        found = None
        for hop in reversed(hops):
            address = _parse(hop)
            if address is None:
                break
            found = str(address)
            if found not in self._proxies:
                break
        return found


def _host(client: Sequence[Any] | None) -> str | None:
    return client[0] if client else None


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """`1.2.3.4`, `1.2.3.4:567`, `fe80::1`, `[fe80::1]:567`; an IPv4 address that IPv6 carries is the IPv4 address."""
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
