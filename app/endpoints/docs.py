"""GET /openapi.json, the API for programs, and GET /docs, the same for people: a page that asks no other origin for
anything. Neither tells what is served, so neither needs a key. `--no-docs` leaves both out."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from quire.app.background import in_background
from quire.app.etag import Page
from quire.app.openapi.operation import JSON, operation

# The page's parts, by the last word of their paths: where they lie in docs_page, and what they are.
PARTS = {
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "swagger-ui.css": ("swagger-ui/swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", "text/javascript"),
}

# No scripts and styles but our files, none within the page, and no connections but to where it came from. Swagger UI's
# icons are data: images.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


@operation("Describe this API", "documents", gives=dict[str, Any], has_etag=True)
async def openapi(request: Request) -> Response:
    return (await in_background(_document, request.app)).reply(request, {})


@operation("Show the description as a page", "documents", other_media={"text/html": None}, has_etag=True)
async def page(request: Request) -> Response:
    return (await in_background(_file, "index.html", "text/html")).reply(request, _HEADERS)


@operation("A part of that page", "documents", is_listed=False)
async def part(request: Request) -> Response:
    found = await in_background(_file, *PARTS[request.url.path.rpartition("/")[2]])
    return found.reply(request, _HEADERS)


def _document(app: Starlette) -> Page:
    """Made once, by the first who asks: it takes longer than a worker's start may."""
    if not hasattr(app.state, "document"):
        from quire.app.openapi.document import document

        content = document(app.routes, app.state.public_paths)
        app.state.document = Page.of(msgspec.json.encode(content), JSON)
    page = app.state.document
    assert isinstance(page, Page)
    return page


@cache
def _file(path: str, media_type: str) -> Page:
    return Page.of(resources.files("quire.app").joinpath("docs_page", path).read_bytes(), media_type)
