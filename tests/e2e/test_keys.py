"""Keys, the admin port and the audit log of a whole server with two HTTP workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from quire.app.keys.key import Key, digest_of, new_secret
from quire.app.keys.key_file import load_key_file, write_key_file
from tests.e2e.server import ANY_WEIGHTS, KEY, Server, alive, serving, start, until

MODEL = "smollm2-135m-instruct"
NOW = datetime.now(timezone.utc)
SECRETS = {name: new_secret() for name in ("client", "admin", "elsewhere")}
KEYS = [Key(name="client", sha256=digest_of(SECRETS["client"]), created=NOW),
        Key(name="admin", sha256=digest_of(SECRETS["admin"]), created=NOW, admin=True),
        Key(name="elsewhere", sha256=digest_of(SECRETS["elsewhere"]), created=NOW, models=("another-model",))]


class Keyed:
    """A running server with a key file, an admin port and an audit log."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.key_file = str(directory / "keys.yaml")
        self.audit = directory / "audit"
        self.run_dir = directory / "run"
        self.admin_url = server.events("admin port")[0]["url"]

    def status(self, secret: str | None, path: str = "/version", url: str = "", **options: Any) -> int:
        return self.send(secret, path, url, **options).status_code

    def send(self, secret: str | None, path: str, url: str = "", method: str = "GET", **options: Any) -> httpx.Response:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return httpx.request(method, (url or self.server.url) + path, headers=headers, timeout=10, **options)

    def on_admin_port(self, secret: str | None, path: str, **options: Any) -> httpx.Response:
        return self.send(secret, path, self.admin_url, **options)

    def metric(self, name: str) -> float:
        lines = self.on_admin_port(None, "/metrics").text.splitlines()
        (value,) = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " "))]
        return value

    @contextlib.contextmanager
    def read_by_all(self, event: str = "key file read") -> Iterator[None]:
        """Until every worker has logged `event` since."""
        before = len(self.server.events(event))
        yield
        until(lambda: len(self.server.events(event)) >= before + 2)

    def status_at_each_worker(self, secret: str) -> list[int]:
        """While one is stopped, the other answers."""
        found = []
        for worker in self.server.pids()["workers"]:
            os.kill(worker, signal.SIGSTOP)
            try:
                found.append(self.status(secret))
            finally:
                os.kill(worker, signal.SIGCONT)
        return found


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    directory = tmp_path_factory.mktemp("keyed")
    write_key_file(str(directory / "keys.yaml"), KEYS)
    with serving("--host", "127.0.0.1", "-asc", "2", "--api-key-file", str(directory / "keys.yaml"), "--audit-log",
                 str(directory / "audit"), "--admin-port", "0", "--run-dir", str(directory / "run"),
                 *ANY_WEIGHTS) as server:
        yield Keyed(server, directory)


@pytest.fixture
def restored(keyed: Keyed) -> Iterator[Keyed]:
    """A test that changes the key file; afterwards it is as before, and every worker knows."""
    yield keyed
    with keyed.read_by_all():
        write_key_file(keyed.key_file, KEYS)


def quire_keys(*arguments: str, file: str) -> str:
    done = subprocess.run([sys.executable, "-m", "quire", "keys", *arguments, "--file", file], capture_output=True,
                          text=True, check=True)
    return done.stdout.strip()


def test_refusals_as_openais_client_sees_them(keyed: Keyed) -> None:
    wrong = keyed.server.client(api_key=new_secret())
    with pytest.raises(openai.AuthenticationError) as unknown:
        wrong.completions.create(model=MODEL, prompt="x", max_tokens=1)
    assert unknown.value.code == "invalid_api_key"
    assert unknown.value.response.headers["www-authenticate"] == "Bearer"
    elsewhere = keyed.server.client(api_key=SECRETS["elsewhere"])
    with pytest.raises(openai.PermissionDeniedError) as other:
        elsewhere.completions.create(model=MODEL, prompt="x", max_tokens=1)
    assert other.value.param == "model"
    assert "elsewhere" in str(other.value)
    assert elsewhere.models.list().data == []
    client = keyed.server.client(api_key=SECRETS["client"])
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=1).choices[0].finish_reason == "length"


def test_only_probes_are_open_and_the_admin_port_has_its_own(keyed: Keyed) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/health", "/ping"):
        assert keyed.status(None, path) == keyed.status(None, path, keyed.admin_url) == 200
    for path in ("/startupz", "/version", "/v1/models", "/nowhere", "/metrics", "/admin/status"):
        assert keyed.status(None, path) == 401
        if path != "/metrics":
            assert keyed.status(None, path, keyed.admin_url) == 401
    for path in ("/metrics", "/admin/status"):
        assert keyed.status(SECRETS["admin"], path) == 404
    assert keyed.status(None, "/metrics", keyed.admin_url) == 200
    assert keyed.status(SECRETS["admin"], "/v1/models", keyed.admin_url) == 404
    statuses = [keyed.status(secret, "/admin/status", keyed.admin_url)
                for secret in (SECRETS["client"], SECRETS["admin"], KEY)]
    assert statuses == [403, 200, 200]


def test_a_created_key_works_at_once_and_a_revoked_one_no_more(restored: Keyed) -> None:
    with restored.read_by_all():
        secret = quire_keys("create", "fresh", file=restored.key_file)
    assert restored.status_at_each_worker(secret) == [200, 200]
    with restored.read_by_all():
        quire_keys("revoke", "fresh", file=restored.key_file)
    assert restored.status_at_each_worker(secret) == [401, 401]
    assert restored.status_at_each_worker(SECRETS["client"]) == [200, 200]


def test_a_broken_file_keeps_the_old_set_and_turns_the_gauge(restored: Keyed) -> None:
    assert restored.metric("quire:key_file_ok") == 1
    with restored.read_by_all("key file cannot be used; the keys read before stay"):
        Path(restored.key_file).write_text("- name: client\n  sha256: [")
    assert restored.metric("quire:key_file_ok") == 0
    assert restored.status_at_each_worker(SECRETS["client"]) == [200, 200]
    killed, _ = restored.server.pids()["workers"]
    os.kill(killed, signal.SIGKILL)  # the one that takes its place starts with the broken file
    until(lambda: len(restored.server.pids()["workers"]) == 2 and killed not in restored.server.pids()["workers"])
    until(lambda: len(restored.server.events("key file cannot be used; the keys read before stay")) >= 3)
    assert restored.status_at_each_worker(SECRETS["client"]) == [200, 200]
    with restored.read_by_all():
        write_key_file(restored.key_file, KEYS)
    assert restored.metric("quire:key_file_ok") == 1


@pytest.mark.slow
def test_a_key_ends_when_its_time_is_over(restored: Keyed) -> None:
    secret = new_secret()
    key = Key(name="short", sha256=digest_of(secret), created=NOW,
              not_after=datetime.now(timezone.utc) + timedelta(seconds=6))
    with restored.read_by_all():
        write_key_file(restored.key_file, [*KEYS, key])
    assert restored.status(secret) == 200
    until(lambda: key.expired)
    assert restored.status_at_each_worker(secret) == [401, 401]


def test_reload_and_sighup_make_all_workers_read_again(keyed: Keyed) -> None:
    with keyed.read_by_all():
        assert keyed.on_admin_port(SECRETS["admin"], "/admin/reload", method="POST").status_code == 202
    with keyed.read_by_all():
        keyed.server.process.send_signal(signal.SIGHUP)
    lines = [json.loads(line) for line in keyed.audit.read_text().splitlines()]
    asked = [(line["key"], line["details"].get("by")) for line in lines if line["action"] == "reload"]
    assert asked == [("admin", None), ("", "SIGHUP")]


def test_the_log_level_changes_in_all_workers(keyed: Keyed) -> None:
    def requests_logged() -> int:
        return len(keyed.server.events("request"))

    def set_level(level: str) -> None:
        reply = keyed.on_admin_port(SECRETS["admin"], "/admin/log-level", method="POST", json={"level": level})
        assert reply.status_code == 202

    def silent() -> bool:
        before = requests_logged()
        assert keyed.status_at_each_worker(KEY) == [200, 200]
        time.sleep(0.3)  # a line comes after its reply
        return requests_logged() == before

    assert not silent()
    set_level("error")
    until(silent)
    with keyed.read_by_all():
        set_level("info")
    until(lambda: not silent())


def test_admin_actions_and_the_start_are_in_the_audit_log(keyed: Keyed) -> None:
    keyed.on_admin_port(SECRETS["client"], "/admin/keys")
    moved = keyed.audit.with_suffix(".1")
    keyed.audit.rename(moved)
    keyed.on_admin_port(SECRETS["admin"], "/admin/keys")
    lines = [json.loads(line) for line in moved.read_text().splitlines()]
    assert (lines[0]["action"], lines[0]["outcome"]) == ("server start", "begun")
    assert (lines[-1]["action"], lines[-1]["outcome"], lines[-1]["key"]) == ("GET /admin/keys", "refused", "client")
    assert lines[-1]["client"] == "127.0.0.1"
    (line,) = [json.loads(line) for line in keyed.audit.read_text().splitlines()]
    assert (line["action"], line["outcome"], line["key"]) == ("GET /admin/keys", "allowed", "admin")


def test_no_secret_and_no_named_keys_digest_is_anywhere_it_can_leak_from(keyed: Keyed) -> None:
    keyed.status(SECRETS["client"])
    found = {"log": "".join(keyed.server.lines), "metrics": keyed.on_admin_port(None, "/metrics").text,
             "audit": keyed.audit.read_text(), "settings": (keyed.run_dir / "settings.json").read_text(),
             "keys": keyed.on_admin_port(KEY, "/admin/keys").text,
             "status": keyed.on_admin_port(KEY, "/admin/status").text}
    for pid in [pid for group in keyed.server.pids().values() for pid in group]:
        for name in ("environ", "cmdline"):
            found[f"{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes().decode()
    for place, text in found.items():
        for secret in (KEY, *SECRETS.values()):
            assert secret not in text, place
        for key in KEYS:
            assert key.sha256 not in text, place
    assert digest_of(KEY) not in "".join(text for place, text in found.items() if place != "settings")
    assert "client" in found["log"]
    for name in ("settings.json", "keys.json"):
        assert (keyed.run_dir / name).stat().st_mode & 0o077 == 0
    assert not any(secret in Path(keyed.key_file).read_text() for secret in SECRETS.values())


def test_the_key_file_is_whole_whenever_it_is_read(restored: Keyed) -> None:
    with restored.read_by_all():
        for number in range(20):
            write_key_file(restored.key_file, [*KEYS, Key(name=f"k{number}", sha256=f"{number:064x}", created=NOW)])
            assert len(load_key_file(restored.key_file)) == 4
            assert restored.status(SECRETS["client"]) == 200


def test_a_server_on_a_unix_socket_without_keys_has_an_admin_port_too(tmp_path: Path) -> None:
    server = start("--uds", str(tmp_path / "q.sock"), "--admin-port", "0", "--audit-log", str(tmp_path / "audit"),
                   *ANY_WEIGHTS)
    try:
        server.wait_ready()
        admin_url = server.events("admin port")[0]["url"]
        transport = httpx.HTTPTransport(uds=str(tmp_path / "q.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost") as main:
            assert main.get("/v1/models").status_code == 200
            assert main.get("/metrics").status_code == main.get("/admin/status").status_code == 404
        assert httpx.get(f"{admin_url}/metrics").status_code == 200
        assert httpx.get(f"{admin_url}/v1/models").status_code == 404
        refused = httpx.get(f"{admin_url}/admin/status")
        assert refused.status_code == 403
        assert "VLLM_API_KEY" in refused.json()["error"]["message"]
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        last = json.loads((tmp_path / "audit").read_text().splitlines()[-1])
        assert (last["action"], last["details"]) == ("server stop", {"exit_code": 0})
    finally:
        if alive(server.process.pid):
            server.process.kill()


def test_keys_as_systemd_hands_them_over_and_metrics_without_an_admin_port(tmp_path: Path) -> None:
    (tmp_path / "VLLM_API_KEY").write_text(KEY + "\n")
    write_key_file(str(tmp_path / "quire-keys"), KEYS)
    server = start("--host", "127.0.0.1", *ANY_WEIGHTS, environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    try:
        server.wait_ready()

        def statuses(path: str) -> list[int]:
            secrets = (KEY, SECRETS["admin"], SECRETS["client"], new_secret())
            return [httpx.get(server.url + path, headers={"authorization": f"Bearer {secret}"}).status_code
                    for secret in secrets]

        assert statuses("/v1/models") == [200, 200, 200, 401]
        assert statuses("/metrics") == statuses("/admin/status") == [200, 200, 403, 401]
    finally:
        server.process.kill()
        server.wait_exit()


def test_a_short_key_is_a_warning_in_the_log_that_does_not_show_it() -> None:
    server = start("/nowhere/at/all", environment={"VLLM_API_KEY": "tooshort"})
    assert server.wait_exit() == 2
    (warning,) = server.events("an API key has fewer than 16 characters and may be found by trying")
    assert warning["level"] == "warning"
    assert "tooshort" not in "".join(server.lines)


@pytest.mark.parametrize(("flags", "said"), [
    (["--audit-log", "/nowhere/audit"], "--audit-log: /nowhere/audit cannot be written"),
    (["--api-key-file", "/nowhere/keys"], "--api-key-file: /nowhere/keys: cannot be read"),
])
def test_what_cannot_be_used_is_a_configuration_error_at_the_start(flags: list[str], said: str) -> None:
    server = start(*flags)
    assert server.wait_exit() == 2
    assert said in "".join(server.lines)
