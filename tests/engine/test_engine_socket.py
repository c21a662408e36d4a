from __future__ import annotations

import os
from pathlib import Path

from quire.engine.server import EngineServer


def test_the_engines_socket_is_its_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server = EngineServer(f"ipc://{tmp_path}/engine.sock")
        assert os.stat(tmp_path / "engine.sock").st_mode & 0o777 == 0o600
        assert os.umask(0) == 0, "files made later are as the user wants them"
        server.close()
    finally:
        os.umask(before)
