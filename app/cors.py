"""The rules for pages of other origins (CORS): what may be wrong with them. Kept by `quire.app.middleware.cors`."""

from __future__ import annotations

import re

ANY = "*"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110's, of which methods and header names are made
# What browsers send as Origin: the scheme, the host in small letters, a port unless it is the scheme's own.
_ORIGIN = r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]*)(:\d{1,5})?"
_OWN_PORTS = {"http": ":80", "https": ":443"}


def problems(origins: list[str] | None, methods: list[str] | None, headers: list[str] | None, *,
             credentials: bool) -> list[str]:
    """Everything wrong with them, a line each."""
    found = [problem for origin in origins or [] if (problem := _origin_problem(origin))]
    for name, words in (("methods", methods), ("headers", headers)):
        found += [f"--allowed-{name}: {word!r} is the name of no {name[:-1]}" for word in words or []
                  if not re.fullmatch(_TOKEN, word)]
        if words and ANY not in words and not origins:
            found.append(f"--allowed-{name}: says nothing without --allowed-origins, which lets pages in at all")
    if credentials and not origins:
        found.append("--allow-credentials: needs --allowed-origins, the pages that may send them")
    if credentials and ANY in (origins or []):
        found.append("--allow-credentials: with --allowed-origins * any page could use a visitor's cookies and client "
                     "certificates; name the origins. Keys are sent as a header and need no --allow-credentials")
    return found


def _origin_problem(origin: str) -> str | None:
    if origin == "null":
        return ("--allowed-origins: 'null' is what pages in sandboxed frames send, whoever made them; say * if any "
                "page may come")
    if origin == ANY or (re.fullmatch(_ORIGIN, origin) and not _has_own_port(origin)):
        return None
    scheme, separator, rest = origin.partition("://")
    meant = f"{scheme}://{rest.partition('/')[0]}".lower()
    meant = meant.removesuffix(_OWN_PORTS.get(scheme.lower(), " "))
    hint = f"; say {meant}" if separator and re.fullmatch(_ORIGIN, meant) else "; it looks like https://chat.example.org"
    return (f"--allowed-origins: {origin!r} is no origin as browsers send it (scheme, host, a port that is not the "
            f"scheme's own; no path){hint}")


def _has_own_port(origin: str) -> bool:
    return origin.endswith(_OWN_PORTS.get(origin.partition("://")[0], " "))
