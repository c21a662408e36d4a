from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from quire.app.cli import main
from quire.app.keys.key import digest_of
from quire.app.keys.key_file import load_key_file

Run = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("QUIRE_AUDIT_LOG", raising=False)
    path = str(tmp_path / "keys.yaml")
    monkeypatch.setenv("QUIRE_API_KEY_FILE", path)
    return path


def test_a_secret_is_shown_once_and_only_its_digest_kept(file: str, capsys: Run) -> None:
    assert main(["keys", "create", "ci"]) == 0
    shown = capsys.readouterr()
    secret = shown.out.strip()
    assert shown.out == secret + "\n"
    assert secret not in shown.err
    assert "ci" in shown.err
    (key,) = load_key_file(file)
    assert key.sha256 == digest_of(secret)
    assert secret not in Path(file).read_text()
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert abs((datetime.now(timezone.utc) - key.created).total_seconds()) < 60


def test_every_limit_reaches_the_file_and_the_table_without_digests(file: str, capsys: Run) -> None:
    assert main(["keys", "create", "batch", "--expires", "90d", "--models", "a", "b", "--requests-per-minute", "60",
                 "--tokens-per-minute", "1000", "--max-concurrent", "2", "--priority", "-3", "--weight", "0.5",
                 "--admin"]) == 0
    assert main(["keys", "create", "other"]) == 0
    key, other = load_key_file(file)
    assert (key.models, key.requests_per_minute, key.tokens_per_minute, key.max_concurrent, key.priority, key.weight,
            key.admin) == (("a", "b"), 60, 1000, 2, -3, 0.5, True)
    assert key.not_after == key.created + timedelta(days=90)
    assert (other.models, other.not_after, other.priority, other.admin) == (None, None, 0, False)
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    heads, first, second = capsys.readouterr().out.splitlines()
    assert heads.split()[:3] == ["NAME", "CREATED", "EXPIRES"]
    assert first.split() == ["batch", f"{key.created:%Y-%m-%d}", f"{key.not_after:%Y-%m-%d}", "yes", "a,b", "-3",
                             "0.5", "60", "1000", "2"]
    assert second.split() == ["other", f"{other.created:%Y-%m-%d}", "never", "no", "all", "0", "1", "-", "-", "-"]
    assert key.sha256 not in heads + first + second


def test_a_revoked_key_is_gone_and_the_others_stay(file: str, capsys: Run) -> None:
    for name in ("a", "b"):
        main(["keys", "create", name])
    assert main(["keys", "revoke", "a"]) == 0
    assert [key.name for key in load_key_file(file)] == ["b"]
    assert main(["keys", "revoke", "b", "--file", file]) == 0
    assert load_key_file(file) == []


@pytest.mark.parametrize(("argv", "said"), [
    (["create", "there"], "there is a key there already"), (["revoke", "absent"], "no key absent"),
    (["create", "a b"], "name: must be 1 to 64 letters"), (["create", "x", "--weight", "0"], "weight: "),
    (["create", "x", "--expires", "soon"], "--expires: 'soon'"), (["create", "x", "--expires", "0d"], "over already"),
    (["create", "x", "--expires", "2020-01-01T00:00:00Z"], "over already"),
    (["create", "x", "--expires", "2099-01-01T00:00:00"], "--expires: "),
    (["create", "x", "--requests-per-minute", "-1"], "requests_per_minute: "),
    (["create", "x", "--file", "/nowhere/at/all"], "/nowhere/at/all: cannot be written: /nowhere/at: No such file"),
    (["revoke", "x", "--file", "/nowhere/at/all"], "/nowhere/at/all: cannot be written: /nowhere/at: No such file"),
    (["list", "--file", "/nowhere/at/all"], "/nowhere/at/all: cannot be read: No such file"),
    (["create", "x", "--audit-log", "/nowhere/at/all"], "/nowhere/at/all: "),
])
def test_what_cannot_be_done_is_said_and_changes_nothing(file: str, capsys: Run, argv: list[str], said: str) -> None:
    main(["keys", "create", "there"])
    before = Path(file).read_bytes()
    capsys.readouterr()
    assert main(["keys", *argv]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert not shown.out
    assert Path(file).read_bytes() == before


def test_the_file_must_be_named(file: str, capsys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUIRE_API_KEY_FILE")
    assert main(["keys", "list"]) == 2
    assert "QUIRE_API_KEY_FILE" in capsys.readouterr().err


def test_making_and_revoking_keys_is_audited(file: str, capsys: Run, tmp_path: Path) -> None:
    audit = str(tmp_path / "audit")
    main(["keys", "create", "ci", "--audit-log", audit])
    secret = capsys.readouterr().out.strip()
    main(["keys", "revoke", "ci", "--audit-log", audit])
    text = Path(audit).read_text()
    assert [(line["action"], line["details"]["name"]) for line in map(json.loads, text.splitlines())] == [
        ("keys create", "ci"), ("keys revoke", "ci")]
    assert secret not in text and digest_of(secret) not in text
