"""The server with a pod's own settings: what the kubelet, a client and Prometheus would see, from the load to the end.

The pod of the overlay cpu with the components tls and tls/exec-probes, the image's own settings, and its paths under
a folder of the test's. It is a process here, in no container, and no kubelet is there.
"""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.deploy.dockerfile import stages
from tests.deploy.kustomize import container, pod, settings_of
from tests.e2e.server import KEY, start, until

POD = "cpu+tls/exec-probes"

pytestmark = pytest.mark.slow


@pytest.fixture
def root() -> Iterator[str]:
    """Where the pod's mounts are; short, since there is a Unix socket below."""
    folder = tempfile.mkdtemp(prefix="quire-pod-")
    for mount in container(POD)["volumeMounts"]:
        Path(folder + mount["mountPath"]).mkdir(parents=True)
        Path(folder + mount["mountPath"]).chmod(0o777)  # as the kubelet makes an emptyDir
    yield folder
    shutil.rmtree(folder)


def probe(root: str, name: str) -> int:
    """The exit status of the command that the kubelet would run."""
    command = container(POD)[name]["exec"]["command"]
    ours = [part.replace('"/run/quire', f'"{root}/run/quire') for part in command[1:]]
    limit_s = container(POD)[name]["timeoutSeconds"]
    return subprocess.run([sys.executable, *ours], capture_output=True, timeout=limit_s).returncode


def test_a_pods_life(root: str) -> None:
    own = {name: value for name, value in stages()["server"].environment.items() if name.startswith("QUIRE_")}
    settings = {name: root + value if value.startswith("/") else value
                for name, value in (own | settings_of(POD)).items()}
    Path(settings["VLLM_API_KEY_FILE"]).write_text(KEY)
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(settings["QUIRE_SSL_CERTFILE"])
    certificate.private_key_pem.write_to_path(settings["QUIRE_SSL_KEYFILE"])
    Path(settings["QUIRE_SSL_KEYFILE"]).chmod(0o440)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    server = start("--admin-port", "0", "--host", "127.0.0.1", "--admin-host", "127.0.0.1", environment=settings)
    try:
        until(lambda: probe(root, "livenessProbe") == 0, 30)
        assert probe(root, "startupProbe") == 1, "alive, and still loading"
        server.wait_ready()
        assert [probe(root, name) for name in ("startupProbe", "readinessProbe", "livenessProbe")] == [0, 0, 0]
        with httpx.Client(verify=trust, timeout=60) as client:
            question = {"model": settings["QUIRE_MODEL"], "max_tokens": 4,
                        "messages": [{"role": "user", "content": "Hi"}]}
            assert client.post(f"{server.url}/v1/chat/completions", json=question).status_code == 401
            client.headers["authorization"] = f"Bearer {KEY}"
            reply = client.post(f"{server.url}/v1/chat/completions", json=question)
            assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] > 0
            assert client.get(f"{server.url}/metrics").status_code == 404
            del client.headers["authorization"]
            admin = server.events("admin port")[0]["url"]
            assert "vllm:num_requests_waiting" in client.get(f"{admin}/metrics").text
        asked_at = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: probe(root, "readinessProbe") == 1, 5)
        assert probe(root, "livenessProbe") == 0, "leaving, not ill"
        assert server.wait_exit(pod(POD)["terminationGracePeriodSeconds"]) == 0
        assert time.monotonic() - asked_at >= float(settings["QUIRE_DRAIN_DELAY"])
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait_exit()
