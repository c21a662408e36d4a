"""HF_TOKEN_PATH, by which all of deploy/ hands over a hub's token, and a model that is pulled before it is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.hub import MODEL, serving
from tests.engine.models import tiny

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


def test_a_model_pulled_with_a_mounted_token_is_there_for_who_asks_no_hub(tmp_path: Path) -> None:
    """As the init container does, and the server after it: the same command shows where the model is."""
    (tmp_path / "files").mkdir()
    tiny.write(tmp_path / "files", "llama")
    token = tmp_path / "token"
    token.write_text("hf_secret\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}

    def pull(**variables: str) -> subprocess.CompletedProcess[str]:
        settings = hub.environment(tmp_path / "cache") | {"QUIRE_MODEL": MODEL} | variables
        return subprocess.run([sys.executable, "-m", "quire", "pull"], capture_output=True, text=True, timeout=60,
                              env=environment | settings)

    with serving(tmp_path / "files") as hub:
        hub.token = "hf_secret"
        first = pull(HF_TOKEN_PATH=str(token))
        assert first.returncode == 0 and (Path(first.stdout.strip()) / "model.safetensors").exists(), first.stderr
        hub.asked.clear()
        assert pull(HF_HUB_OFFLINE="1").stdout == first.stdout and not hub.asked
