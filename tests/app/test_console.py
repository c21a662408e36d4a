"""The console's files: who gets them, with what policy, and that they need nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from quire.app import announce
from quire.app.endpoints import console
from quire.app.endpoints.console import FILES
from quire.app.settings import ServeSettings
from tests.app.conftest import KEY
from tests.app.test_host import EVIL, talking_to

SOURCES = Path(console.__file__).parents[1] / "console"
PATHS = sorted(FILES)


@pytest.fixture
def without_console(make_app: Callable[..., Starlette]) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(make_app(console=False)), base_url="http://localhost")


@pytest.mark.parametrize("path", PATHS)
async def test_every_file_is_everybodys_and_comes_with_the_policy(guarded: httpx.AsyncClient, path: str) -> None:
    reply = await guarded.get(path)
    assert reply.status_code == 200
    assert reply.content == (SOURCES / FILES[path][0]).read_bytes()
    assert reply.headers["content-type"].startswith(FILES[path][1])
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert set(policy.values()) == {"'self'", "'none'"}, "nothing inline, nothing from elsewhere"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert (await guarded.head(path)).headers["etag"] == reply.headers["etag"]
    again = await guarded.get(path, headers={"if-none-match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/console/", "/console", "/console/index.html", "/console/../settings.py",
                                  "/console/%2e%2e/settings.py", "/console/..%2fsettings.py", "/console/dom.js/",
                                  "/index.html"])
async def test_no_other_path_is_a_file(guarded: httpx.AsyncClient, path: str) -> None:
    assert (await guarded.get(path)).status_code == 401
    assert (await guarded.get(path, headers={"authorization": f"Bearer {KEY}"})).status_code == 404


def test_the_table_is_all_that_there_is_and_all_that_is_used() -> None:
    assert {name for name, _ in FILES.values()} == {path.name for path in SOURCES.iterdir()}
    used = set(re.findall(r'(?:href|src)="(console/[\w.]+)"', (SOURCES / "index.html").read_text()))
    for script in SOURCES.glob("*.js"):
        imported = re.findall(r'^import .* from "\./([\w.]+)";$', script.read_text(), re.MULTILINE)
        used |= {f"console/{name}" for name in imported}
    assert {f"/{path}" for path in used} | {"/"} == set(FILES)


def test_nothing_is_inline_made_of_markup_or_from_elsewhere() -> None:
    page = (SOURCES / "index.html").read_text()
    assert re.findall(r"<script[^>]*>(?!</script>)|<style|\son\w+=|\sstyle=", page) == []
    for script in SOURCES.glob("*.js"):
        text = script.read_text()
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text) == []
    for file in SOURCES.iterdir():
        addresses = re.findall(r"\w+://[\w.-]+", file.read_text())
        assert set(addresses) <= {"http://www.w3.org"}, file  # the name of SVG, which nobody opens


async def test_it_can_be_left_out(without_console: httpx.AsyncClient) -> None:
    for path in PATHS:
        reply = await without_console.get(path)
        assert reply.status_code == 404
        assert "/console" not in reply.json()["error"]["message"].partition("The paths are")[2]


async def test_looks_at_it_are_counted_but_not_logged(client: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        for path in PATHS:
            await client.get(path)
    assert [line for line in logs if line["event"] == "request"] == []
    counted = f'http_requests_total{{deadline="",handler="/",method="GET",status="200"}} {len(PATHS)}.0'
    assert counted in (await client.get("/metrics")).text


async def test_a_page_of_another_name_does_not_get_it_without_keys(make_app: Callable[..., Starlette]) -> None:
    async with talking_to(make_app()) as client:
        assert (await client.get("/", headers={"host": EVIL})).status_code == 403


@pytest.mark.parametrize(("path", "status", "location"), [
    ("/llm", 308, "llm/"), ("/llm/", 200, None), ("/", 200, None), ("/llm/console/main.js", 200, None)])
async def test_below_a_proxys_prefix_its_relative_addresses_lead_to_it(
        make_app: Callable[..., Starlette], path: str, status: int, location: str | None) -> None:
    app = make_app(root_path="/llm")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        reply = await client.get(path)
    assert (reply.status_code, reply.headers.get("location")) == (status, location)


def test_the_first_suggestion_is_the_readmes_first_question() -> None:
    suggestions = re.search(r'SUGGESTIONS = \[\s*"(.+?)"', (SOURCES / "chat.js").read_text())
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    question = re.search(r'"role": "user", "content": "(.+?)"', readme)
    assert suggestions and question
    assert suggestions[1] == question[1]


@pytest.mark.parametrize(("url", "changes", "named"), [
    ("http://127.0.0.1:8000", {}, True), ("https://127.0.0.1:8000", {"console": False}, False),
    ("unix:/run/q.sock", {}, False)])
def test_a_terminal_is_told_where_it_is(monkeypatch: pytest.MonkeyPatch, url: str, changes: dict[str, bool],
                                        named: bool) -> None:
    said: list[str] = []
    monkeypatch.setattr(announce, "stderr", SimpleNamespace(isatty=lambda: True, write=said.append))
    announcer = announce.Announcer(ServeSettings(**changes))  # type: ignore[arg-type]
    announcer.starting(url)
    announcer.ready(url, again=False)
    text = "".join(said)
    assert [at in text for at in (f"watch it start at {url}/\n", f"browser at {url}/ or try:\n")] == [named, named]
    assert "/v1/chat/completions" in text
