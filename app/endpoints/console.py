"""GET / and the files that it needs: the console, a page to chat with the model and to watch the server.

Everybody may have them: they are the same on every server. What the page shows it asks of the other endpoints, with the
key that a person types into it. No other path leads to a file, and the files are read at their first request.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from quire.app.etag import Page
from quire.app.openapi.operation import operation

_DIRECTORY = Path(__file__).parents[1] / "console"
_SCRIPTS = ("api", "chat", "dom", "inline", "main", "markdown", "metrics", "pictures", "plot", "poll", "server",
            "snippets", "sse", "state")

FILES = {  # path -> (file, media type)
    "/": ("index.html", "text/html"),
    "/console/icon.svg": ("icon.svg", "image/svg+xml"),
    "/console/style.css": ("style.css", "text/css"),
    **{f"/console/{name}.js": (f"{name}.js", "text/javascript") for name in _SCRIPTS},
}

# The page loads its own files, speaks to its own server, and can be framed, scripted or styled by nobody else. Trusted
# types: an answer can become text and elements, never markup.
_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    "require-trusted-types-for 'script'", "trusted-types 'none'"))
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@operation("A part of the console", "documents", is_listed=False)
async def file(request: Request) -> Response:
    path = request.scope["path"]
    if path == "/" and not request.scope.get("raw_path", b"/").endswith(b"/"):
        return _with_slash(request)
    return _page(path).reply(request, _HEADERS)


def _with_slash(request: Request) -> Response:
    """Sends on from the bare --root-path, under which the page's relative addresses would miss it."""
    last = request.scope["raw_path"].decode("ascii").rpartition("/")[2]
    return Response(status_code=308, headers=_HEADERS | {"location": f"{last}/"})


@cache
def _page(path: str) -> Page:
    name, media_type = FILES[path]
    return Page.of((_DIRECTORY / name).read_bytes(), media_type)
