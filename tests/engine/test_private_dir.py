from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from quire.engine.private_dir import PrivateDirectory

LEAVE_ONE_BEHIND = """
import os
from quire.engine.private_dir import PrivateDirectory
left = PrivateDirectory()
print(left.path, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_behind_is_swept_and_what_others_have_stays(temporary: Path) -> None:
    living = PrivateDirectory()
    checkout = temporary / "quire-main"  # somebody's, of a name like ours
    checkout.mkdir()
    done = subprocess.run([sys.executable, "-c", LEAVE_ONE_BEHIND], stdout=subprocess.PIPE, text=True)
    left = Path(done.stdout.strip())
    assert left.is_dir()
    link = temporary / "quire-link"
    link.symlink_to(left)
    mine = PrivateDirectory()
    assert not left.exists()
    assert {Path(living.path), Path(mine.path), checkout, link} == set(temporary.iterdir())
    assert os.stat(mine.path).st_mode & 0o777 == 0o700
    living.remove()
    mine.remove()
    assert set(temporary.iterdir()) == {checkout, link}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_another_users_directory_is_not_touched(temporary: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVE_ONE_BEHIND], stdout=subprocess.PIPE, text=True)
    left = Path(done.stdout.strip())
    os.chown(left, 12345, 12345)
    PrivateDirectory().remove()
    assert left.is_dir()
