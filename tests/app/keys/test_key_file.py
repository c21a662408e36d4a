from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.app.keys.key import Key, digest_of, new_secret
from quire.app.keys.key_file import MAX_BYTES, load_key_file, locked, parse_keys, write_key_file
from quire.engine.errors import ConfigError

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
ENTRY: dict[str, Any] = {"name": "ci", "sha256": "ab" * 32, "created": "2026-01-02T03:04:05Z"}

counts = st.integers(0, 10**12)
times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda time: time.replace(tzinfo=timezone.utc))
key = st.builds(
    Key, name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(lambda n: n[:4] != "key-"),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex), created=times, not_after=st.none() | times,
    models=st.none() | st.lists(st.text(max_size=20), min_size=1, max_size=3).map(tuple),
    priority=st.none() | st.integers(-(2**31), 2**31 - 1), weight=st.floats(0.001, 1000), requests_per_minute=counts,
    tokens_per_minute=counts, max_concurrent=counts, admin=st.booleans())
keys = st.lists(key, max_size=4, unique_by=(lambda k: k.name, lambda k: k.sha256))
endings = st.sampled_from([".yaml", ".json"])


def problems_of(content: object, path: str = "keys.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_keys(content if isinstance(content, bytes) else yaml.safe_dump(content).encode(), path)
    return caught.value.problems


@given(keys, endings)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, keys: list[Key], ending: str) -> None:
    path = str(tmp_path_factory.getbasetemp() / f"round{ending}")
    write_key_file(path, keys)
    assert load_key_file(path) == keys
    assert Path(path).stat().st_mode & 0o777 == 0o600


@given(keys.filter(bool), endings, st.data())
@settings(max_examples=80, deadline=None)
def test_a_damaged_file_is_refused_or_holds_whole_keys(tmp_path_factory: pytest.TempPathFactory, keys: list[Key],
                                                       ending: str, data: st.DataObject) -> None:
    path = str(tmp_path_factory.getbasetemp() / f"damaged{ending}")
    write_key_file(path, keys)
    content = bytearray(Path(path).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        content[at:at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        found = parse_keys(bytes(content), path)
    except ConfigError:
        return
    assert len({key.name for key in found}) == len(found) == len({key.sha256 for key in found})
    write_key_file(path, found)
    assert load_key_file(path) == found


@given(keys.filter(bool), st.data())
@settings(max_examples=50, deadline=None)
def test_a_wrong_entry_is_named_with_its_field(keys: list[Key], data: st.DataObject) -> None:
    entries = yaml.safe_load(yaml.safe_dump([{"name": key.name, **ENTRY, "sha256": key.sha256} | {"name": key.name}
                                             for key in keys]))
    entry = data.draw(st.sampled_from(entries))
    field, value = data.draw(st.sampled_from([
        ("reqests_per_minute", 5), ("requests_per_minute", "5"), ("requests_per_minute", -1),
        ("tokens_per_minute", 1.5), ("tokens_per_minute", 10**13), ("max_concurrent", True), ("weight", 0),
        ("weight", float("nan")), ("weight", float("inf")), ("admin", 1), ("admin", "yes"), ("models", []),
        ("models", "m"), ("priority", 2**31), ("not_after", "2027-01-01"), ("not_after", "2027-01-01T00:00:00"),
        ("not_after", datetime(2027, 1, 1).date()), ("sha256", "AB" * 32), ("sha256", "ab" * 31), ("created", None)]))
    entry[field] = value
    (problem,) = problems_of(entries)
    assert f"key {entry['name']!r}: {field}:" in problem


@pytest.mark.parametrize("name", ["", "a b", "-a", "a\n", "é", "x" * 65, 7, None, "key-0123abcd"])
def test_names_are_words_that_logs_and_metrics_can_hold(name: object) -> None:
    assert any("name: " in problem for problem in problems_of([ENTRY | {"name": name}]))


def test_every_problem_is_told_at_once() -> None:
    entries = [ENTRY, ENTRY | {"name": "twin"}, ENTRY | {"sha256": "cd" * 32}, {"name": "x", "admn": True}, 5]
    text = "\n".join(problems_of(entries))
    for expected in ("sha256: 2 keys have the same (ci, twin)", "name: 2 keys have the same (ci, ci)",
                     "key 'x': admn: there is no such field; did you mean admin?", "key 'x': sha256: is missing",
                     "key 'x': created: is missing", "entry 5: must be a mapping"):
        assert expected in text


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    secret = new_secret()
    for content in ([ENTRY | {"sha256": secret}], [ENTRY | {"created": secret}], [ENTRY | {"weight": secret}],
                    f"- name: a\n  sha256: [{secret}".encode(), f"- !!int {secret}".encode(), f"- {secret}".encode()):
        assert secret not in "\n".join(problems_of(content))


@pytest.mark.parametrize("content", [
    b"", b"\xff", b"keys: []", b"[[]]", b"- name: a\n  name: b\n", b"!!int ''", b"!!bool x", b"!!timestamp x",
    b"!!python/object/apply:os.getcwd []", b"[" * 20000, b"- *a", b"- {[a]: 1}", b"- <<: 3"])
def test_nonsense_is_a_problem_not_a_crash(content: bytes) -> None:
    assert problems_of(content)


def test_twice_the_same_field_is_refused_with_its_line_and_in_json_too() -> None:
    (problem,) = problems_of(b"- name: a\n  name: b\n")
    assert problem == "keys.yaml: is not YAML: line 2: name is there already, on line 1"
    text = json.dumps([ENTRY])
    assert len(parse_keys(text.encode(), "k.json")) == 1
    assert "requests_per_minute is there 2 times" in problems_of(
        text.replace("}", ', "requests_per_minute": 1, "requests_per_minute": 2}').encode(), "k.json")[0]
    assert problems_of(b"[" * 200000, "k.json")


def test_times_may_have_any_zone_and_limits_default_to_none() -> None:
    (key,) = parse_keys(yaml.safe_dump([ENTRY | {"not_after": "2027-01-01T02:00:00+02:00"}]).encode(), "k")
    assert key.not_after == datetime(2027, 1, 1, tzinfo=timezone.utc)
    assert key.created == CREATED
    assert (key.limits.requests_per_minute, key.limits.tokens_per_minute, key.limits.max_concurrent) == (0, 0, 0)
    assert parse_keys(b"- {name: a, sha256: '%b', created: 2026-01-02T03:04:05Z}" % (b"ab" * 32), "k")[0].created \
        == CREATED  # YAML's own times


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o644, 0o601])
def test_a_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text("[]")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        load_key_file(str(path))
    path.chmod(0o640)
    assert load_key_file(str(path)) == []


def test_what_is_no_small_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "large").touch(0o600)
    (tmp_path / "large").write_bytes(b" " * (MAX_BYTES + 1))
    for name in ("pipe", "large", "absent", "."):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            load_key_file(str(tmp_path / name))


def test_a_rewritten_file_keeps_its_mode_owner_and_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.touch()
    real.chmod(0o440)
    if os.getuid() == 0:
        os.chown(real, 12345, 54321)
    before = real.stat()
    link.symlink_to(real)
    write_key_file(str(link), [])
    after = real.stat()
    assert link.is_symlink()
    assert real.read_text() == "[]\n"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_a_sandbox_that_lets_nobody_change_owners_is_no_obstacle(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """The systemd unit's SystemCallFilter=~@privileged."""
    def refused(*args: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    path = tmp_path / "keys.json"
    for _ in range(2):
        write_key_file(str(path), [])
    assert path.read_text() == "[]\n"
    if os.getuid() == 0:
        os.chown(path, 12345, 54321)
        with pytest.raises(PermissionError):
            write_key_file(str(path), [])


def _add(path: str, name: str) -> None:
    with locked(path):
        keys = load_key_file(path) if os.path.exists(path) else []
        write_key_file(path, [*keys, Key(name=name, sha256=digest_of(name), created=CREATED)])


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    names = [f"writer{i}" for i in range(8)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(path, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert sorted(key.name for key in load_key_file(path)) == names


def test_expiry_is_a_moment() -> None:
    now = datetime.now(timezone.utc)
    key = parse_keys(yaml.safe_dump([copy.copy(ENTRY)]).encode(), "k")[0]
    assert not key.expired
    for change_s, expired in ((-1, True), (60, False)):
        entry = ENTRY | {"not_after": (now + timedelta(seconds=change_s)).isoformat()}
        assert parse_keys(yaml.safe_dump([entry]).encode(), "k")[0].expired is expired


def test_half_a_character_is_no_text() -> None:
    for field in ("name", "sha256", "models", "prefix_group"):
        half = "[\"\\ud800\"]" if field == "models" else "\"\\ud800\""
        written = json.dumps([{**ENTRY, field: 0}]).replace(f'"{field}": 0', f'"{field}": {half}').encode()
        for path in ("keys.json", "keys.yaml"):
            assert any(f": {field}: " in problem for problem in problems_of(written, path)), (field, path)


def test_a_field_whose_name_is_a_number_of_any_length_is_a_problem() -> None:
    for number in (b"16", b"0x" + b"f" * 5000):
        [problem, *_] = problems_of(b"- ? " + number + b"\n  : 1\n")
        assert "the name of a field must be text, and one is of type int" in problem
