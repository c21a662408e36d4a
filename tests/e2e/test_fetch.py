"""Models that come from a hub: a stand-in on loopback, slow, silent or refusing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.hub import MODEL, Hub, serving
from tests.e2e.server import free_port, start, until
from tests.engine.models import tiny

HUBS = ["huggingface", "modelscope"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "files").mkdir()
    tiny.write(tmp_path / "files", "llama")
    with serving(tmp_path / "files") as hub:
        yield hub


def pull(hub: Hub, cache: Path, model: str = MODEL, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    return subprocess.Popen([sys.executable, "-m", "quire", "pull", model], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=inherited | hub.environment(cache) | environment)


def asking(name: str) -> dict[str, str]:
    """The environment that asks that hub."""
    if name == "modelscope":
        pytest.importorskip("modelscope")
        return {"VLLM_USE_MODELSCOPE": "True"}
    return {}


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_model_is_pulled_once_and_a_refusal_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.token = "hf_secret"
    code, _, told = outcome(pull(hub, cache))
    assert code == 2 and "HF_TOKEN" in told and "Traceback" not in told and told.count("\n") == 1
    hub.status = 404
    code, _, told = outcome(pull(hub, cache, HF_TOKEN=hub.token))
    assert code == 2 and "check the name and --revision" in told
    hub.status = 503
    assert outcome(pull(hub, cache, HF_TOKEN=hub.token))[0] == 3
    hub.status = 200
    code, path, told = outcome(pull(hub, cache, HF_TOKEN=hub.token))
    assert code == 0, told
    assert (Path(path.strip()) / "model.safetensors").stat().st_size > 100_000
    hub.asked.clear()
    assert outcome(pull(hub, cache, HF_TOKEN=hub.token))[:2] == (0, path)
    assert not [asked for asked in hub.asked if asked.startswith("GET") and "/resolve/" in asked], "all of it was here"


@pytest.mark.parametrize("name", HUBS)
def test_only_what_is_read_is_fetched_and_found_again_without_a_hub(name: str, hub: Hub, tmp_path: Path) -> None:
    environment = asking(name)
    wanted = {str(path.relative_to(hub.folder)) for path in hub.folder.rglob("*")} | {
        "tokenizer.model", "tekken.json", "additional_chat_templates/tool_use.jinja"}
    for file in (*wanted, "pytorch_model.bin", "consolidated.safetensors", "original/params.json", "README.md"):
        (hub.folder / file).parent.mkdir(exist_ok=True)
        if not (hub.folder / file).exists():
            (hub.folder / file).write_text(file)  # equal files would be fetched once
    code, path, told = outcome(pull(hub, tmp_path, **environment))
    assert code == 0, told
    assert hub.sent() == wanted and all((Path(path.strip()) / file).exists() for file in wanted)
    assert all(line.startswith("{") for line in told.splitlines()), "our log alone"
    hub.asked.clear()
    code, again, told = outcome(pull(hub, tmp_path, **environment, HF_HUB_OFFLINE="1"))
    assert (code, again) == (0, path), told
    assert hub.asked == []
    if name == "huggingface":  # one hub will do
        hub.status = 403
        code, again, told = outcome(pull(hub, tmp_path))
        assert (code, again) == (0, path) and "the hub gives no answer" in told


def test_a_gguf_file_is_fetched_alone_by_its_quantisation(hub: Hub, tmp_path: Path, smollm2_path: Path) -> None:
    """One hub will do: which file is chosen is no client's business."""
    (hub.folder / "model.safetensors").unlink()
    for file in ("m-Q8_0.gguf", "m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf", "mmproj-F16.gguf"):
        (hub.folder / file).touch()
    code, _, told = outcome(pull(hub, tmp_path))
    assert code == 2 and told.count("\n") == 1
    assert "several GGUF files; name one, as org/name:Q4_K_M" in told and "m-F16-00001-of-00002.gguf, m-Q8" in told
    (hub.folder / "m-Q8_0.gguf").write_bytes(smollm2_path.read_bytes())
    code, path, told = outcome(pull(hub, tmp_path, f"{MODEL}:q8_0"))
    assert code == 0 and Path(path.strip()).name == "m-Q8_0.gguf", told
    assert hub.sent() == {"m-Q8_0.gguf"}
    offline = {"HF_HUB_OFFLINE": "1"}
    assert outcome(pull(hub, tmp_path, f"{MODEL}/m-Q8_0.gguf", **offline))[:2] == (0, path)
    code, _, told = outcome(pull(hub, tmp_path, f"{MODEL}:F16", **offline))
    assert code == 2 and "none of its GGUF files is F16" in told and "HF_HUB_OFFLINE" in told


@pytest.mark.parametrize("name", HUBS)
def test_a_connection_that_is_cut_goes_on_where_it_was(name: str, hub: Hub, tmp_path: Path) -> None:
    environment = asking(name)
    whole = os.urandom(24 * 2**20)  # clients write pieces of up to 10 MiB
    (hub.folder / "model.safetensors").write_bytes(whole)
    hub.cuts = 1
    code, path, told = outcome(pull(hub, tmp_path, **environment))
    assert code == 0, told
    assert (Path(path.strip()) / "model.safetensors").read_bytes() == whole
    (file, first), = map(str.split, hub.ranges)
    assert file == "model.safetensors" and int(first) >= 10 * 2**20


def test_a_stopped_pull_leaves_nothing_half_done(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_s = 20_000
    process = pull(hub, tmp_path)
    until(lambda: list(tmp_path.rglob("*.incomplete")) and list(tmp_path.rglob("config.json")))
    process.send_signal(signal.SIGTERM)
    assert outcome(process)[0] == 128 + signal.SIGTERM
    assert not list(tmp_path.rglob("*.incomplete"))
    assert list(tmp_path.rglob("config.json")), "what was whole stays"


def serve(hub: Hub, cache: Path) -> tuple[Any, str]:
    port = free_port()
    server = start("--port", str(port), "--skip-tokenizer-init", "--device", "cpu", "--max-model-len", "128",
                   "--model", MODEL, environment=hub.environment(cache))
    return server, f"http://127.0.0.1:{port}"


def answer(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, timeout=5)
    except httpx.TransportError:
        return None


def test_a_server_answers_while_its_model_is_on_its_way_and_can_be_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.silent.set()
    server, url = serve(hub, tmp_path)
    try:
        until(lambda: answer(f"{url}/livez"))
        assert answer(f"{url}/livez").status_code == 200  # type: ignore[union-attr]
        not_ready = answer(f"{url}/readyz")
        assert not_ready is not None and not_ready.status_code == 503
        assert not_ready.json()["status"] == "loading" and not_ready.json()["total_bytes"] is None
        assert answer(f"{url}/metrics").status_code == 200  # type: ignore[union-attr]
        chat = httpx.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
        assert chat.status_code == 503 and chat.headers["retry-after"] == "5"
        assert "not ready yet" in chat.json()["error"]["message"]
        asked_at = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(10) == 0
        assert time.monotonic() - asked_at < 3
    finally:
        server.process.kill()
        server.wait_exit()


@pytest.mark.slow
def test_a_fetch_is_told_in_bytes_and_then_the_model_is_served(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_s = 100_000
    server, url = serve(hub, tmp_path)
    try:
        until(lambda: (reply := answer(f"{url}/readyz")) and reply.json().get("total_bytes"))
        state = answer(f"{url}/readyz").json()  # type: ignore[union-attr]
        assert state["phase"] == "fetching" and state["total_bytes"] > 100_000 and 0 <= state["fraction"] < 1
        server.wait_ready()
        assert answer(f"{url}/readyz").status_code == 200  # type: ignore[union-attr]
        assert server.events("fetched")[0]["bytes"] > 100_000
        hub.status = 503  # the hub is not needed any more, also where engine and workers start again
        for pid in [*server.pids()["workers"], *server.pids()["engine"]]:
            os.kill(pid, signal.SIGKILL)
        until(lambda: (reply := answer(f"{url}/readyz")) is not None and reply.status_code == 503)
        until(lambda: (reply := answer(f"{url}/readyz")) is not None and reply.status_code == 200, 60)
    finally:
        server.process.kill()
        server.wait_exit()


def test_a_server_whose_hub_refuses_ends_with_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.status = 401
    server, _ = serve(hub, tmp_path)
    assert server.wait_exit(30) == 2, "".join(server.lines)
    told = [line for line in server.lines if line.startswith("quire serve: ")]
    assert len(told) == 1 and "HF_TOKEN" in told[0]
    assert "Traceback" not in "".join(server.lines)
