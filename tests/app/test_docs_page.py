"""/openapi.json and /docs: there for anyone, from this origin alone, and gone with --no-docs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from quire.app.routes import DOCS_ROUTES
from tests.app.test_host import talking_to

PATHS = {route.path for route in DOCS_ROUTES}
FILES = Path(__file__).parents[2] / "app" / "docs_page"


async def test_all_of_it_is_there_without_a_key_and_nothing_else_is(guarded: httpx.AsyncClient) -> None:
    for path in PATHS:
        assert (await guarded.get(path)).status_code == 200
    for path in ("/docs/", "/docs/index.html", "/docs/../main.py", "/docs/swagger-ui/LICENSE", "/openapi"):
        assert (await guarded.get(path)).status_code == 401


async def test_whoever_has_it_gets_no_second_copy(client: httpx.AsyncClient) -> None:
    for path in PATHS:
        first = await client.get(path)
        etag = first.headers["etag"]
        assert first.content and first.headers["x-content-type-options"] == "nosniff"
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = await client.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert (await client.get(path, headers={"if-none-match": '"other"'})).content == first.content


async def test_no_docs_leaves_all_of_it_out(make_app: Callable[..., Starlette]) -> None:
    async with talking_to(make_app(docs=False)) as client:
        assert {path: (await client.get(path)).status_code for path in PATHS} == dict.fromkeys(PATHS, 404)
        assert "/docs" not in (await client.get("/nowhere")).json()["error"]["message"]
    digest = hashlib.sha256(b"a key").hexdigest()
    async with talking_to(make_app(docs=False, key_digests=[digest])) as client:
        assert (await client.get("/docs")).status_code == 401


async def test_the_page_runs_only_its_own_files_and_asks_only_its_origin(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy == {"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self' data:",
                      "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'",
                      "frame-ancestors": "'none'"}
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert links and all(f"/{link}" in PATHS or link == "data:," for link in links)  # relative: also below a prefix
    assert not re.search(r"<script>|<style|\s(style|on\w+)=", page.text)
    for link in links:
        if link.startswith("docs/"):
            kind = (await client.get(f"/{link}")).headers["content-type"]
            assert kind == ("text/css" if link.endswith(".css") else "text/javascript") + "; charset=utf-8"


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css"])
def test_vendored_files_are_those_that_were_published(name: str) -> None:
    noted = (FILES / "swagger-ui" / "VENDORED.txt").read_text()
    assert f"{hashlib.sha256((FILES / 'swagger-ui' / name).read_bytes()).hexdigest()}  {name}" in noted
