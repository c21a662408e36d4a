"""Which settings reach the server that a run starts for itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.app.batch.own_server import settings_of
from quire.app.cli import load_settings
from quire.app.sources import load


def test_settings_reach_it_whole_except_those_about_who_may_come(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "quire.yaml"
    file.write_text("host: 0.0.0.0\nport: 9000\nseed: 7\nssl_ciphers: x\nssl_certfile: c\nssl_keyfile: k\n")
    monkeypatch.setenv("VLLM_API_KEY", "a-key-that-is-long-enough")
    monkeypatch.setenv("QUIRE_QUEUE_TIMEOUT", "5")
    monkeypatch.setenv("QUIRE_ADMIN_PORT", "9001")
    loaded = load_settings("run-batch", ["m", "--config", str(file), "--max-model-len", "1k", "--served-model-name",
                                         "a", "b", "--enforce-eager", "--gpu-memory-utilization", "0.00001"])
    written = settings_of(loaded, "/s")
    assert written == {"model": "m", "seed": 7, "queue_timeout": 5.0, "ttft_timeout": 0.0, "request_timeout": 0.0,
                       "max_model_len": 1000, "served_model_name": ["a", "b"], "enforce_eager": True,
                       "gpu_memory_utilization": 0.00001, "log_level": "warning", "disable_access_log": True,
                       "max_connections_per_ip": 0, "uds": "/s"}
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(written))
    reread = load({"config": str(again)}, {}).settings
    assert reread.engine == loaded.settings.engine
    assert (reread.uds, reread.has_keys, reread.scheme, reread.admin_port) == ("/s", False, "http", None)
