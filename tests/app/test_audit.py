from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire.app.telemetry.audit import AuditError, AuditLog
from quire.engine.errors import ConfigError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_by_several_processes_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    first, second = AuditLog(str(path)), AuditLog(str(path))
    first.write("a", "begun", key="ci", client="127.0.0.1", request_id="r", level="debug")
    second.write("b\n", "refused")
    first.write("c", "done")
    assert [line["action"] for line in lines(path)] == ["a", "b\n", "c"]
    line = lines(path)[0]
    assert line.pop("time").endswith("Z")
    assert line.pop("pid")
    assert line == {"action": "a", "outcome": "begun", "key": "ci", "client": "127.0.0.1", "request_id": "r",
                    "details": {"level": "debug"}}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_moved_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit = AuditLog(str(path))
    audit.write("before", "done")
    path.rename(tmp_path / "audit.1")
    audit.write("after", "done")
    path.write_text("")  # the same file, emptied: rotation by copying
    audit.write("emptied", "done")
    assert [line["action"] for line in lines(tmp_path / "audit.1")] == ["before"]
    assert [line["action"] for line in lines(path)] == ["emptied"]


def test_what_cannot_be_written_is_said_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "directory" / "audit"
    audit = AuditLog(str(path))
    with pytest.raises(ConfigError, match=r"--audit-log: .*audit cannot be written: No such file"):
        audit.check()
    with pytest.raises(AuditError, match="No such file"):
        audit.write("a", "begun")
    path.parent.mkdir()
    audit.write("b", "begun")
    assert len(lines(path)) == 1


def test_a_full_disk_is_an_error() -> None:
    with pytest.raises(AuditError, match="No space left"):
        AuditLog("/dev/full").write("a", "begun")


def test_without_a_file_nothing_happens() -> None:
    AuditLog(None).check()
    AuditLog(None).write("a", "begun")
