"""`quire bench overhead` with two real servers, the one with everything on, HTTPS included."""

from __future__ import annotations

import json
import shutil

import pytest

from quire.loadtest import overhead


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is missing")
def test_both_servers_answer_every_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert overhead.main(["--rounds", "1", "--requests", "4", "--concurrency", "2", "--tokens", "4", "--tls",
                          "--cpu-threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] == 0
    assert result["ratio"] > 0
