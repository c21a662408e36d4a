from __future__ import annotations

import asyncio
import hmac
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from quire.app.keys.key import Key, digest_of, new_secret
from quire.app.keys.key_file import write_key_file
from quire.app.keys.ring import KeyRing
from quire.app.watch import watch

NOW = datetime.now(timezone.utc)
SECRETS = [new_secret() for _ in range(5)]


def key(number: int, **fields: Any) -> Key:
    return Key(**({"name": f"key{number}", "sha256": digest_of(SECRETS[number]), "created": NOW} | fields))


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "keys.yaml")
    write_key_file(path, [key(0), key(1, not_after=NOW - timedelta(seconds=1)), key(2, admin=True)])
    return path


def test_a_secret_finds_its_key_and_nothing_else_does(path: str) -> None:
    ring = KeyRing([digest_of("operators-own-key")], path)
    assert ring.required and ring.healthy
    assert ring.find(SECRETS[0]) == key(0)
    assert ring.find(SECRETS[1]) is None  # expired
    found = ring.find("operators-own-key")
    assert found is not None
    assert found.admin and found.models is None and found.priority is None
    assert found.name == "key-" + digest_of("operators-own-key")[:8]
    for wrong in ("", SECRETS[3], SECRETS[0].upper(), SECRETS[0][:-1], digest_of(SECRETS[0]), "é", "\udcff"):
        assert ring.find(wrong) is None


def test_every_digest_is_compared_whichever_fits(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing([digest_of("a"), digest_of("b")], path)
    compared: list[bytes] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    for secret in ("a", "b", SECRETS[0], SECRETS[1], SECRETS[2], "none"):
        compared.clear()
        ring.find(secret)
        assert len(set(compared)) == len(compared) == 5


def test_a_digest_given_both_ways_has_the_files_limits(path: str) -> None:
    ring = KeyRing([digest_of(SECRETS[0]), digest_of(SECRETS[1])], path)
    assert ring.find(SECRETS[0]) == key(0)
    assert ring.find(SECRETS[1]) is None


def test_a_broken_file_changes_nothing_but_health(path: str) -> None:
    ring = KeyRing([], path)
    before, loaded_at = ring.keys, ring.loaded_at
    for broken in ("", "- {", "- name: x", "[[[", "{}"):
        Path(path).write_text(broken)
        assert not ring.reload()
        assert not ring.healthy
        assert (ring.keys, ring.loaded_at) == (before, loaded_at)
    Path(path).unlink()
    assert not ring.reload()
    assert ring.find(SECRETS[0]) is not None
    write_key_file(path, [key(3)])
    assert ring.reload()
    assert ring.healthy and ring.loaded_at > loaded_at
    assert ring.find(SECRETS[0]) is None
    assert ring.find(SECRETS[3]) == key(3)


def test_an_empty_list_lets_nobody_in(path: str) -> None:
    Path(path).write_text("[]")
    ring = KeyRing([], path)
    assert ring.healthy and ring.required and ring.find(SECRETS[0]) is None
    assert not KeyRing().required


def test_a_worker_that_starts_while_the_file_is_broken_has_the_keys_of_the_others(path: str, tmp_path: Path) -> None:
    last_good = str(tmp_path / "last.json")
    KeyRing([], path, last_good)
    Path(path).write_text("- broken")
    late = KeyRing([], path, last_good)
    assert late.find(SECRETS[0]) == key(0)
    assert not late.healthy
    Path(last_good).unlink()
    nobody = KeyRing([digest_of("own")], path, last_good)
    assert nobody.required and nobody.find(SECRETS[0]) is None and nobody.find("own") is not None


def test_a_file_that_cannot_be_remembered_is_used_all_the_same(path: str, tmp_path: Path) -> None:
    last_good = tmp_path / "gone" / "last.json"
    assert KeyRing([], path, str(last_good)).find(SECRETS[0]) is not None


async def test_a_change_between_the_first_read_and_the_first_look_is_noticed(path: str) -> None:
    ring = KeyRing([], path)
    write_key_file(path, [key(3)])
    changed = asyncio.Event()
    watcher = asyncio.create_task(watch([path], changed.set, [ring.stamp], poll_s=0.01))
    await asyncio.wait_for(changed.wait(), 10)
    watcher.cancel()


def test_secrets_are_long_and_never_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("quire-") and len(secret) == 49 for secret in secrets)


@pytest.mark.parametrize(("own", "asked", "runs"), [(0, -5, 0), (0, 3, 3), (-5, -9, -5), (None, -9, -9), (7, 0, 7)])
def test_a_client_cannot_run_before_its_keys_priority(own: int | None, asked: int, runs: int) -> None:
    assert key(0, priority=own).effective_priority(asked) == runs
