"""`quire run-batch` with the real model: killed in the middle of a run and run again; with a server of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.server import KEY, Server, until

MODEL = "smollm2-135m-instruct"


def write(path: Path, num_lines: int, max_tokens: int) -> None:
    urls = ("/v1/completions", {"prompt": "The sky is"}), (
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]})
    with path.open("w") as file:
        for i in range(num_lines):
            url, body = urls[i % 2]
            whole = {"model": MODEL, "max_tokens": max_tokens, "ignore_eos": True, "seed": i, **body}
            file.write(json.dumps({"custom_id": str(i), "method": "POST", "url": url, "body": whole}) + "\n")
        file.write(json.dumps({"custom_id": "vector", "method": "POST", "url": "/v1/embeddings",
                               "body": {"input": "The sky"}}) + "\n")


def start(directory: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUIRE_", "VLLM_", "COV_"))}
    return subprocess.Popen([sys.executable, "-m", "quire", "run-batch", "-i", "in.jsonl", "-o", "out.jsonl", *flags],
                            cwd=directory, env=env | environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=60)
    return process.returncode, told


def results(directory: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (directory / "out.jsonl").read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line["response"]["body"] for line in lines}


def test_a_run_that_was_killed_goes_on_and_loses_and_repeats_nothing(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", 8, max_tokens=8)
    out = tmp_path / "out.jsonl"
    flags = "--url", server.url, "--concurrency", "2"
    killed = start(tmp_path, *flags, VLLM_API_KEY=KEY)
    until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 2)
    killed.kill()
    finish(killed)
    kept = out.read_bytes()[:out.read_bytes().rfind(b"\n") + 1]
    code, told = finish(start(tmp_path, *flags, VLLM_API_KEY=KEY))
    assert (code, out.read_bytes().startswith(kept)) == (0, True), told
    found = results(tmp_path)
    assert set(found) == {*map(str, range(8)), "vector"}
    assert all(found[str(i)]["usage"]["completion_tokens"] == 8 for i in range(8))
    assert len(found["vector"]["data"][0]["embedding"]) == 576


def test_a_server_of_its_own_needs_no_key_and_is_gone_afterwards(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", 2, max_tokens=2)
    code, told = finish(start(tmp_path, "--model", MODEL, "--max-model-len", "1024", "--cpu-threads", "1",
                              VLLM_API_KEY=KEY, TMPDIR=str(tmp_path)))
    assert code == 0, told
    assert len(results(tmp_path)) == 3
    assert "server: " in told and "done: 3 of 3 lines have a result, 0 failed" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_what_the_server_says_of_its_settings_is_told_and_nothing_is_left_behind(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", 1, max_tokens=1)
    code, told = finish(start(tmp_path, "--model", str(tmp_path / "nothing"), TMPDIR=str(tmp_path)))
    assert code == 2, told
    assert "nothing" in told and "ended with exit code 2" in told
    assert results(tmp_path) == {}


def test_ctrl_c_while_the_model_loads_stops_the_server_too(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", 1, max_tokens=1)
    process = start(tmp_path, "--model", MODEL, "--max-model-len", "1024", "--cpu-threads", "1", TMPDIR=str(tmp_path))
    until(lambda: any(path.name.startswith("quire-batch-") for path in tmp_path.iterdir()))
    process.send_signal(signal.SIGINT)
    code, told = finish(process)
    assert code == 130 and "interrupted, the same command goes on from here" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
