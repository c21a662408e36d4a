"""A Kubernetes manifest written for vLLM, with its probes on /health, and Quire. What changes is in docs/deploy.md."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import httpx
import pytest

from quire.app.cli import load_settings
from quire.app.routes import PUBLIC, ROUTES
from tests.deploy.kubelet import Kubelet
from tests.e2e.server import KEY, free_port, start, until

HEALTH = {"httpGet": {"path": "/health", "port": 8000}}
# The probes of vLLM's example for GPUs.
EXAMPLE: dict[str, Any] = {
    "livenessProbe": HEALTH | {"initialDelaySeconds": 60, "periodSeconds": 10},
    "readinessProbe": HEALTH | {"initialDelaySeconds": 60, "periodSeconds": 5},
}
WITH_STARTUP = EXAMPLE | {"startupProbe": HEALTH | {"periodSeconds": 10, "failureThreshold": 120}}
WITH_LIVEZ = WITH_STARTUP | {"livenessProbe": EXAMPLE["livenessProbe"] | {"httpGet": {"path": "/livez", "port": 8000}}}
LISTENS_S = 2  # from then on the server answers


def lived(container: dict[str, Any], load_s: float, away: tuple[float, float] = (0, 0), until_s: int = 1500) -> Kubelet:
    """A pod that loads for `load_s` and whose engine is away from `away[0]` for `away[1]` seconds."""
    kubelet = Kubelet(container)
    for now_s in range(until_s):
        serves = now_s >= load_s and not away[0] <= now_s < sum(away)
        kubelet.look(now_s, lambda path: now_s >= LISTENS_S and (path == "/livez" or serves))  # noqa: B023
        if kubelet.ended:
            break
    return kubelet


@pytest.mark.parametrize(("container", "load_s", "lives"), [
    (EXAMPLE, 20, True), (EXAMPLE, 75, True), (EXAMPLE, 90, False),
    (WITH_STARTUP, 20, True), (WITH_STARTUP, 1100, True), (WITH_STARTUP, 1300, False)])
def test_a_load_ends_in_a_ready_pod_where_the_probes_allow_for_it(
        container: dict[str, Any], load_s: float, lives: bool) -> None:
    kubelet = lived(container, load_s)
    assert (kubelet.ready, kubelet.ended) == (lives, not lives)


@pytest.mark.parametrize(("container", "away_s", "lives"), [
    (WITH_STARTUP, 20, True), (WITH_STARTUP, 60, False), (WITH_LIVEZ, 60, True), (WITH_LIVEZ, 600, True)])
def test_an_engine_that_is_replaced_ends_no_pod_that_is_asked_by_livez(
        container: dict[str, Any], away_s: float, lives: bool) -> None:
    kubelet = lived(container, 30, away=(300, away_s))
    assert (kubelet.ready, kubelet.ended) == (lives, not lives)


def test_its_flags_and_its_variables_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_abc")
    loaded = load_settings("serve", [
        "mistralai/Mistral-7B-Instruct-v0.3", "--trust-remote-code", "--enable-chunked-prefill",
        "--max_num_batched_tokens", "1024"])
    assert loaded.settings.engine.max_num_batched_tokens == 1024 and loaded.settings.port == 8000
    assert loaded.settings.has_keys and not loaded.warnings


def test_its_probes_need_no_key() -> None:
    assert {"/health", "/livez", "/ping"} <= PUBLIC & {route.path for route in ROUTES}


def faster(container: dict[str, Any], times: float) -> dict[str, Any]:
    return {name: {key: value / times if key.endswith("Seconds") else value for key, value in probe.items()}
            for name, probe in container.items()}


@pytest.mark.slow
def test_a_server_with_a_key_becomes_ready_outlives_its_engine_and_leaves() -> None:
    """Asked as the kubelet would, without a key, twenty times as often."""
    port = free_port()
    kubelet, began = Kubelet(faster(WITH_LIVEZ, 20)), time.monotonic()

    def ask(path: str) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=1).status_code < 400
        except httpx.TransportError:
            return False

    def is_ready(wanted: bool) -> bool:
        kubelet.look(time.monotonic() - began, ask)
        assert not kubelet.ended
        return kubelet.ready == wanted

    server = start("--port", str(port), "-asc", "1", environment={"VLLM_API_KEY": KEY})
    try:
        until(lambda: is_ready(True), 60)
        assert server.events("ready"), "and not before"
        os.kill(server.pids()["engine"][0], signal.SIGKILL)
        until(lambda: is_ready(False), 10)
        until(lambda: is_ready(True), 60)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: is_ready(False), 10)
        assert server.wait_exit() == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait_exit()
