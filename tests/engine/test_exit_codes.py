"""The engine process ends with the code that the launcher ends with for the same reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from structlog.testing import capture_logs

from quire.engine import assembly
from quire.engine.__main__ import serve
from quire.engine.config import EngineArgs
from quire.engine.exit_codes import EXIT_CONFIG, EXIT_LOAD
from quire.engine.heartbeat import Heartbeat
from quire.engine.server import EngineServer


def exit_code(tmp_path: Path, **args: Any) -> int:
    server = EngineServer(f"ipc://{tmp_path}/engine.sock")
    try:
        return serve(server, EngineArgs(**args), Heartbeat(None))
    finally:
        server.close()


def test_a_hub_that_cannot_be_reached_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_answers(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", nobody_answers)
    assert exit_code(tmp_path, model="some/one") == EXIT_LOAD


def test_a_model_that_is_not_there_is_not(tmp_path: Path) -> None:
    assert exit_code(tmp_path, model=str(tmp_path / "none")) == EXIT_CONFIG


def test_a_load_that_breaks_is_logged_as_one_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(assembly, "InProcessExecutor", breaks)
    with capture_logs() as logs:
        assert exit_code(tmp_path) == EXIT_LOAD
    assert [(entry["event"], entry["exc_info"]) for entry in logs] == [("model not loaded", True)]
