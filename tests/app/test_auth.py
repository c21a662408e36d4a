"""Who may do what, with keys of every kind, on the main port and on the admin port."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from quire.app.endpoints import admin
from quire.app.keys.key import Key, digest_of, new_secret
from quire.app.keys.key_file import write_key_file
from quire.app.routes import PUBLIC
from quire.engine.messages import NO_KEY, KeyLimits
from tests.app.fake_engine import FakeEngine

MakeApp = Callable[..., Starlette]
ADMIN_PATHS = ["/metrics", "/admin/status", "/admin/keys"]
PROMPT = {"prompt": "x", "priority": -3}
NOW = datetime.now(timezone.utc)
SECRETS = {name: new_secret() for name in ("plain", "limited", "admin", "expired", "other-model", "first-in-line")}
NAMED = {
    "limited": {"requests_per_minute": 60, "tokens_per_minute": 1000, "max_concurrent": 2, "weight": 3.0},
    "admin": {"admin": True},
    "expired": {"not_after": NOW - timedelta(seconds=1)},
    "other-model": {"models": ("alias", "not-served")},
    "first-in-line": {"priority": -10, "models": ("not-served",)},
}


@asynccontextmanager
async def talking_to(app: Starlette, port: int = 8000) -> AsyncIterator[Callable[..., Any]]:
    """A function that sends a request as the named key."""
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), \
            httpx.AsyncClient(transport=transport, base_url=f"http://localhost:{port}") as client:
        async def send(name: str | None, path: str, method: str = "GET", **options: Any) -> httpx.Response:
            headers = {} if name is None else {"authorization": f"Bearer {SECRETS[name]}"}
            return await client.request(method, path, headers=headers, **options)

        yield send


@pytest.fixture
def keyed(make_app: MakeApp, tmp_path: Path) -> Callable[..., Starlette]:
    path = str(tmp_path / "keys.yaml")
    write_key_file(path, [Key(**{"name": name, "sha256": digest_of(SECRETS[name]), "created": NOW} | fields)
                          for name, fields in NAMED.items()])
    return lambda **changes: make_app(key_digests=[digest_of(SECRETS["plain"])], api_key_file=path, **changes)


async def test_without_a_key_every_path_is_401_in_openais_shape(keyed: MakeApp) -> None:
    async with talking_to(keyed()) as send:
        for path in ("/v1/models", "/startupz", "/version", "/admin", "/admin/nowhere", "/nowhere", "/metrics",
                     "/metrics/", "http://localhost//healthz", "/healthz/", "/health/", "/HEALTHZ"):
            for name in (None, "expired"):
                reply = await send(name, path)
                assert reply.status_code == 401, path
                assert reply.headers["www-authenticate"] == "Bearer"
                error = reply.json()["error"]
                assert error.pop("message").startswith("A valid API key is needed")
                assert error == {"type": "AuthenticationError", "param": None, "code": "invalid_api_key"}
        for path in PUBLIC:
            assert (await send(None, path)).status_code == 200


async def test_a_key_may_have_any_letters(make_app: MakeApp) -> None:
    app = make_app(key_digests=[digest_of("schlüssel-schlüssel")])
    async with talking_to(app), httpx.AsyncClient(transport=httpx.ASGITransport(app),
                                                  base_url="http://localhost") as client:
        for header, status in (("Bearer schlüssel-schlüssel".encode(), 200), (b"Bearer schl\xfcssel-schl\xfcssel", 401),
                               (b"Bearer \xff", 401)):
            assert (await client.get("/version", headers={b"authorization": header})).status_code == status


async def test_an_expired_key_is_refused_from_that_moment(make_app: MakeApp, tmp_path: Path) -> None:
    path = str(tmp_path / "keys.yaml")
    key = Key(name="short", sha256=digest_of(SECRETS["limited"]), created=NOW,
              not_after=datetime.now(timezone.utc) + timedelta(seconds=1))
    write_key_file(path, [key])
    async with talking_to(make_app(api_key_file=path)) as send:
        assert (await send("limited", "/v1/models")).status_code == 200
        while not key.expired:
            pass
        assert (await send("limited", "/v1/models")).status_code == 401


async def test_what_a_key_may_do_goes_to_the_engines_door(keyed: MakeApp, fake: FakeEngine) -> None:
    async with talking_to(keyed()) as send:
        for name, model in (("plain", None), ("limited", None), ("admin", None), ("other-model", "alias")):
            reply = await send(name, "/v1/completions", "POST", json=PROMPT | ({"model": model} if model else {}))
            assert reply.status_code == 200
    limits = [submitted[2]["key"] for submitted in fake.submitted]
    assert limits[0] == KeyLimits("key-" + digest_of(SECRETS["plain"])[:8])
    assert limits[1] == KeyLimits("limited", 60, 1000, 2, 3.0)
    assert limits[2] == KeyLimits("admin")
    assert [submitted[2]["priority"] for submitted in fake.submitted] == [-3, 0, 0, 0]  # the operator's own may


async def test_a_model_that_is_not_the_keys_is_403_before_any_work(keyed: MakeApp, fake: FakeEngine) -> None:
    fake.tokenizer = None
    chat = {"messages": [{"role": "user", "content": "x"}]}
    async with talking_to(keyed()) as send:
        for name, body in (("other-model", {"model": "m"}), ("first-in-line", {})):
            for path, more in (("/v1/completions", PROMPT), ("/v1/chat/completions", chat),
                               ("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
                reply = await send(name, path, "POST", json=more | body)
                assert reply.status_code == 403, path
                error = reply.json()["error"]
                assert name in error["message"]
                assert (error["type"], error["param"], error["code"]) == ("PermissionDeniedError", "model", 403)
        assert not fake.submitted
        reply = await send("other-model", "/v1/completions", "POST", json=PROMPT)  # its first model where it names none
        assert reply.json()["model"] == "alias"
        assert (await send("other-model", "/v1/models/m")).status_code == 403
        assert (await send("other-model", "/v1/models/nowhere")).status_code == 404
        listed = {name: [card["id"] for card in (await send(name, "/v1/models")).json()["data"]]
                  for name in ("plain", "limited", "other-model", "first-in-line")}
    assert listed == {"plain": ["m", "alias"], "limited": ["m", "alias"], "other-model": ["alias"],
                      "first-in-line": []}


async def test_metrics_and_admin_need_the_admin_right_on_the_main_port(keyed: MakeApp) -> None:
    async with talking_to(keyed()) as send:
        for path in ADMIN_PATHS:
            assert (await send(None, path)).status_code == 401
            for name in ("plain", "admin"):
                assert (await send(name, path)).status_code == 200
            reply = await send("limited", path)
            assert reply.status_code == 403
            assert reply.json()["error"]["type"] == "PermissionDeniedError"
        assert (await send("limited", "/admin/nowhere")).status_code == 403
        assert (await send("admin", "/admin/nowhere")).status_code == 404


async def test_a_server_without_keys_shows_metrics_and_cannot_be_administered(make_app: MakeApp,
                                                                              fake: FakeEngine) -> None:
    for admin_port in (None, 9000):
        async with talking_to(make_app(admin_port=admin_port), 9000) as send:
            assert (await send(None, "/metrics")).status_code == 200
            for method, path in (("GET", "/admin/status"), ("POST", "/admin/reload"), ("GET", "/admin/nowhere")):
                reply = await send(None, path, method)
                assert reply.status_code == 403
                assert "VLLM_API_KEY" in reply.json()["error"]["message"]
    async with talking_to(make_app()) as send:
        assert (await send("plain", "/v1/completions", "POST", json=PROMPT)).status_code == 200
    assert (fake.submitted[0][2]["key"], fake.submitted[0][2]["priority"]) == (NO_KEY, -3)


async def test_with_an_admin_port_metrics_and_admin_are_there_and_nothing_else_is(keyed: MakeApp) -> None:
    async with talking_to(keyed(admin_port=9000), 8000) as send:
        for path in ADMIN_PATHS:
            assert (await send(None, path)).status_code == 401
            assert (await send("admin", path)).status_code == 404
        assert (await send("limited", "/v1/models")).status_code == 200
        assert (await send(None, "/readyz")).status_code == 200
    async with talking_to(keyed(admin_port=9000), 9000) as send:
        assert (await send(None, "/metrics")).status_code == 200
        assert (await send(None, "/readyz")).status_code == 200
        for path in ("/admin/status", "/admin/keys"):
            assert [(await send(name, path)).status_code for name in (None, "limited", "admin", "plain")] \
                == [401, 403, 200, 200]
        assert [(await send(name, "/v1/models")).status_code for name in (None, "limited", "admin")] == [401, 404, 404]


async def test_a_unix_socket_is_not_the_admin_port(keyed: MakeApp) -> None:
    app = keyed(admin_port=9000)

    async def on_a_socket(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"server": ("/run/quire.sock", None), "client": None}, receive, send)

    async with app.router.lifespan_context(app), \
            httpx.AsyncClient(transport=httpx.ASGITransport(on_a_socket), base_url="http://localhost:9000") as client:
        headers = {"authorization": f"Bearer {SECRETS['admin']}"}
        assert (await client.get("/metrics", headers=headers)).status_code == 404
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


# /admin itself


async def test_status_and_keys_tell_no_secret(keyed: MakeApp) -> None:
    async with talking_to(keyed(otlp_traces_endpoint="http://user:word@127.0.0.1:1/v1/traces?token=t")) as send:
        status, keys = await send("admin", "/admin/status"), await send("admin", "/admin/keys")
    for secret in SECRETS.values():
        assert secret not in status.text + keys.text
        assert digest_of(secret) not in status.text + keys.text
    assert "sha256" not in keys.text
    body = status.json()
    assert body["settings"]["otlp_traces_endpoint"] == "http://127.0.0.1:1/v1/traces"
    assert body["settings"]["max_body_bytes"] == 4096
    assert body["engine"]["state"] == "ready"
    assert body["engine"]["info"]["max_model_len"] == 100
    assert body["keys"]["healthy"] is True
    assert body["uptime_s"] > 0
    listed = {key["name"]: key for key in keys.json()["keys"]}
    assert listed["limited"]["requests_per_minute"] == 60
    assert listed["expired"]["expired"] is True
    assert listed["other-model"]["models"] == ["alias", "not-served"]
    plain = listed["key-" + digest_of(SECRETS["plain"])[:8]]
    assert plain["admin"] is True
    assert plain["created"] is None
    assert datetime.fromisoformat(listed["limited"]["created"].replace("Z", "+00:00")) == NOW


async def test_reload_and_log_level_ask_all_workers_through_the_reload_file(keyed: MakeApp, tmp_path: Path) -> None:
    reload_file = tmp_path / "reload"
    async with talking_to(keyed()) as send:
        assert (await send("admin", "/admin/reload", "POST")).status_code == 202
        assert json.loads(reload_file.read_text()) == {"log_level": "info"}
        first = reload_file.stat()
        reply = await send("admin", "/admin/log-level", "POST", json={"level": "debug"})
        assert (reply.status_code, reply.json()["log_level"]) == (202, "debug")
        assert json.loads(reload_file.read_text()) == {"log_level": "debug"}
        await send("admin", "/admin/reload", "POST")
        assert json.loads(reload_file.read_text()) == {"log_level": "debug"}
        assert reload_file.stat().st_mtime_ns > first.st_mtime_ns
        for body in ({"level": "loud"}, {}, {"level": 1}):
            assert (await send("admin", "/admin/log-level", "POST", json=body)).status_code == 400
        assert (await send("limited", "/admin/log-level", "POST", json={"level": "debug"})).status_code == 403
        assert (await send("admin", "/admin/status")).json()["log_level"] == "debug"
    assert reload_file.stat().st_mode & 0o777 == 0o600


async def test_a_run_directory_that_takes_no_more_refuses_a_change_and_says_so(
        keyed: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, level: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(admin, "request_reload", full)
    async with talking_to(keyed()) as send:
        for path, body in (("reload", None), ("log-level", {"level": "debug"})):
            reply = await send("admin", f"/admin/{path}", "POST", json=body)
            assert reply.status_code == 503
            assert "No space left on device. Nothing was changed." in reply.json()["error"]["message"]


async def test_every_use_of_admin_is_in_the_audit_log_with_its_outcome(keyed: MakeApp, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    async with talking_to(keyed(audit_log=str(audit))) as send:
        await send("admin", "/admin/status")
        await send("limited", "/admin/keys")
        await send(None, "/admin/nowhere")
        await send("admin", "/metrics")
        await send("plain", "/v1/models")
        last = await send("plain", "/admin/log-level", "POST", json={"level": "error"})
        await send("plain", "/admin/log-level", "POST", json={"level": "info"})
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    plain = "key-" + digest_of(SECRETS["plain"])[:8]
    assert [(line["action"], line["outcome"], line["key"]) for line in lines[:5]] == [
        ("GET /admin/status", "allowed", "admin"), ("GET /admin/keys", "refused", "limited"),
        ("GET /admin/nowhere", "refused", ""), ("POST /admin/log-level", "allowed", plain),
        ("log-level", "begun", plain)]
    assert lines[4]["details"] == {"level": "error"}
    assert lines[4]["request_id"] == last.headers["x-request-id"]
    assert lines[4]["client"] == "127.0.0.1"
    assert not any(secret in audit.read_text() for secret in SECRETS.values())


async def test_with_an_admin_port_strangers_on_the_other_write_no_audit(keyed: MakeApp, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    async with talking_to(keyed(admin_port=9000, audit_log=str(audit)), 8000) as send:
        for name in (None, "limited", "admin"):
            assert (await send(name, "/admin/status")).status_code == (401 if name is None else 404)
    assert not audit.exists()
    async with talking_to(keyed(admin_port=9000, audit_log=str(audit)), 9000) as send:
        assert (await send(None, "/admin/status")).status_code == 401
    assert len(audit.read_text().splitlines()) == 1


async def test_nothing_is_administered_without_audit(keyed: MakeApp, tmp_path: Path) -> None:
    async with talking_to(keyed(audit_log=str(tmp_path / "gone" / "audit"))) as send:
        for method, path in (("GET", "/admin/status"), ("POST", "/admin/reload")):
            reply = await send("admin", path, method)
            assert reply.status_code == 503
            assert "--audit-log" in reply.json()["error"]["message"]
        assert (await send("limited", "/admin/status")).status_code == 403
        assert (await send("admin", "/metrics")).status_code == 200
        assert not (tmp_path / "reload").exists()
        (tmp_path / "gone").mkdir()
        assert (await send("admin", "/admin/reload", "POST")).status_code == 202


async def test_logs_name_keys_and_never_show_them(keyed: MakeApp) -> None:
    with capture_logs() as logs:
        async with talking_to(keyed()) as send:
            for name in SECRETS:
                await send(name, "/v1/completions", "POST", json=PROMPT)
    requests = [line for line in logs if line["event"] == "request"]
    assert [line.get("key") for line in requests] == [
        "key-" + digest_of(SECRETS["plain"])[:8], "limited", "admin", None, "other-model", "first-in-line"]
    text = str(logs)
    assert not any(secret in text or digest_of(secret) in text for secret in SECRETS.values())
