"""HF_TOKEN_PATH, by which all of deploy/ hands over a hub's token: what the hub client makes of the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import json
from huggingface_hub.utils import build_hf_headers
print(json.dumps(build_hf_headers().get("authorization")))
"""


@pytest.mark.parametrize(("content", "header"), [
    ("hf_abc\n", "Bearer hf_abc"), ("hf_abc", "Bearer hf_abc"), ("", None), (None, None)],
    ids=["a line", "no newline", "empty", "missing"])
def test_a_mounted_token_is_used_and_none_is_no_error(content: str | None, header: str | None, tmp_path: Path) -> None:
    """Where nobody has a token, Compose mounts an empty file, and Kubernetes and systemd none."""
    token = tmp_path / "mounted" / "token"
    token.parent.mkdir()
    if content is not None:
        token.write_text(content)
        token.chmod(0o440)
    token.parent.chmod(0o550)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    told = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60, check=True,
                          env=environment | {"HF_TOKEN_PATH": str(token), "HF_HOME": str(tmp_path)})
    assert json.loads(told.stdout) == header
