"""What lies in the directory that the server is started in is data, never its program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import Server

QUIRE = Path(sys.executable).with_name("quire")


@pytest.mark.skipif(not QUIRE.exists(), reason="the command quire is not installed beside Python")
@pytest.mark.slow
def test_modules_in_the_working_directory_are_never_run(tmp_path: Path) -> None:
    for name in ("app", "engine", "kernels", "loadtest"):
        (tmp_path / name).mkdir()
    for name in ("app/__init__", "engine/__init__", "kernels/__init__", "loadtest/__init__", "quire", "yaml",
                 "gunicorn", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("import os; os.write(2, b'POISON\\n'); os.abort()\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUIRE_", "VLLM_", "PYTHON"))}
    # Two stages, so that ranks are processes too.
    server = Server(subprocess.Popen(
        [QUIRE, "serve", "--port", "0", "--max-model-len", "512", "--cpu-threads", "1", "-pp", "2", "-asc", "1"],
        cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL))
    try:
        server.wait_ready()
        assert server.client().completions.create(model="smollm2-135m-instruct", prompt="The", max_tokens=2).choices
    finally:
        server.process.terminate()
        code = server.wait_exit()
    assert code == 0
    assert not any("POISON" in line for line in server.lines)
