"""What the Kubernetes manifests say about the service is true of it: settings, paths, limits, times, metrics.

Each test takes the service's own word: its settings, its routes, its documents.
"""

from __future__ import annotations

import re
import socketserver
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from quire.app.launcher import STOP_ENGINE_S, STOP_HTTP_MARGIN_S
from quire.app.options import OPTIONS, variable
from quire.app.routes import PUBLIC, ROUTES
from quire.app.settings import ServeSettings
from quire.app.sources import load
from quire.engine.errors import ConfigError
from tests.deploy.kustomize import (
    BUILDS,
    K8S,
    RAY,
    ROOT,
    container,
    containers,
    deployment,
    of_kind,
    pod,
    settings_of,
    the,
)

MARGIN_S = 10
OF_OTHERS = {"HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "HOME",
             "NVIDIA_VISIBLE_DEVICES", "VLLM_API_KEY_FILE"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

every_build = pytest.mark.parametrize("name", BUILDS)


def loaded(name: str, tmp_path: Path, key: str = "0123456789abcdef") -> ServeSettings:
    """The settings of a pod, whose mounted key is `key`."""
    file = tmp_path / "api-key"
    file.write_text(key)
    return load({}, {**settings_of(name), "VLLM_API_KEY_FILE": str(file)}).settings


def mounts(name: str) -> dict[str, Any]:
    """What lies at each mounted path."""
    volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in container(name)["volumeMounts"]}


def mount_of(name: str, path: str) -> Any:
    found = mounts(name)
    return next((found[str(parent)] for parent in (PurePosixPath(path), *PurePosixPath(path).parents)
                 if str(parent) in found), None)


@every_build
def test_every_variable_is_a_setting(name: str) -> None:
    assert set(settings_of(name)) - OF_OTHERS <= {variable(option) for option in OPTIONS}


@every_build
def test_the_server_takes_the_settings(name: str, tmp_path: Path) -> None:
    settings = loaded(name, tmp_path)
    ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
    assert (settings.port, settings.admin_port) == (ports["http"], ports["admin"])
    assert settings.has_keys and settings.address == settings.admin_host == "0.0.0.0"


def test_the_example_secret_is_refused_until_it_is_filled_in(tmp_path: Path) -> None:
    example = yaml.safe_load((K8S / "secret.example.yaml").read_text())
    key = PurePosixPath(settings_of("gpu")["VLLM_API_KEY_FILE"])
    assert mounts("gpu")[str(key.parent)]["secret"]["secretName"] == example["metadata"]["name"]
    assert key.name in example["stringData"]
    with pytest.raises(ConfigError, match="a key is empty"):
        loaded("gpu", tmp_path, example["stringData"][key.name])


@every_build
def test_what_the_server_writes_to_is_writable_and_what_it_reads_is_mounted(name: str) -> None:
    settings = settings_of(name)
    for path in ("/tmp", "/dev/shm", *(settings[key] for key in ("QUIRE_RUN_DIR", "HF_HOME", "TRITON_CACHE_DIR",
                                                               "CUDA_CACHE_PATH", "HOME"))):
        volume = mount_of(name, path)
        assert volume is not None and {"emptyDir", "persistentVolumeClaim"} & set(volume), path
        assert not volume.get("persistentVolumeClaim", {}).get("readOnly")
    files = [settings[key] for key in settings if key.endswith("_FILE") or "_SSL_" in key]
    assert all("secret" in mount_of(name, path) for path in files)
    if "HF_TOKEN_PATH" in settings:
        asking = containers(name)[0]  # the one that fetches
        assert settings["HF_TOKEN_PATH"] in {f"{mount['mountPath']}/token" for mount in asking["volumeMounts"]}
    if settings["QUIRE_MODEL"].startswith("/"):
        assert mount_of(name, settings["QUIRE_MODEL"])["persistentVolumeClaim"]["readOnly"]


def test_what_is_pulled_before_is_what_the_server_looks_for_without_a_hub() -> None:
    (pull,) = pod("gpus+pull")["initContainers"]
    server = container("gpus+pull")
    assert pull["envFrom"] == server["envFrom"] and settings_of("gpus+pull")["HF_HUB_OFFLINE"] == "1"
    assert pull["env"] == [{"name": "HF_HUB_OFFLINE", "value": "0"}]
    assert {"name": "cache", "mountPath": "/cache"} in pull["volumeMounts"]
    assert "hub-token" not in {mount["name"] for mount in server["volumeMounts"]}


@every_build
def test_the_grace_period_is_longer_than_the_drain(name: str, tmp_path: Path) -> None:
    settings = loaded(name, tmp_path)
    assert "lifecycle" not in container(name), "a preStop hook would count too"
    drain_s = settings.drain_delay + settings.shutdown_timeout + STOP_HTTP_MARGIN_S + STOP_ENGINE_S
    assert pod(name)["terminationGracePeriodSeconds"] >= drain_s + MARGIN_S
    assert settings.drain_delay >= 10, "every proxy has to hear that the pod is leaving"


def command_of(probe: Any) -> str:
    return probe["httpGet"]["path"] if "httpGet" in probe else probe["exec"]["command"][-1]


@every_build
def test_probes_ask_paths_that_need_no_key_for_what_each_is_about(name: str) -> None:
    probes = {key: container(name)[key] for key in PROBES}
    assert {key: command_of(probe) for key, probe in probes.items()} == {
        "startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    assert {command_of(probe) for probe in probes.values()} <= PUBLIC & {route.path for route in ROUTES}
    alive = probes["livenessProbe"]
    assert alive["timeoutSeconds"] >= 5 and alive["failureThreshold"] >= 3


@every_build
def test_a_slow_load_is_no_failure(name: str) -> None:
    probe = container(name)["startupProbe"]
    budget_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert budget_s >= 1200
    for document in of_kind(name, "Deployment"):
        assert document["spec"]["progressDeadlineSeconds"] > budget_s


@pytest.mark.parametrize("name", ["gpus+ingress", "gpus+monitoring", "gpus+tls", "everything"])
def test_all_who_come_to_the_ports_speak_https_exactly_where_the_server_does(name: str, tmp_path: Path) -> None:
    scheme = loaded(name, tmp_path).scheme.upper()
    assert {container(name)[probe]["httpGet"].get("scheme", "HTTP") for probe in PROBES
            if "httpGet" in container(name)[probe]} <= {scheme}
    for ingress in of_kind(name, "Ingress"):
        annotations = ingress["metadata"]["annotations"]
        assert annotations.get("nginx.ingress.kubernetes.io/backend-protocol", "HTTP") == scheme
    for monitor in of_kind(name, "ServiceMonitor"):
        assert monitor["spec"]["endpoints"][0]["scheme"].upper() == scheme


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        path = self.rfile.readline().split()[1]
        self.wfile.write(b"HTTP/1.1 %s\r\ncontent-length: 0\r\n\r\n" % (b"200 OK" if path == b"/livez" else b"503 No"))


def test_the_exec_probes_tell_200_from_503_and_from_silence(tmp_path: Path) -> None:
    path = str(tmp_path / "probe.sock")

    def asked(probe: str) -> int:
        command = container("gpus+tls/exec-probes")[probe]["exec"]["command"]
        assert command[0] == "python3" and settings_of("gpu")["QUIRE_RUN_DIR"] + "/probe.sock" in command[2]
        ours = [part.replace("/run/quire/probe.sock", path) for part in command[1:]]
        return subprocess.run([sys.executable, *ours], capture_output=True, timeout=20).returncode

    with socketserver.ThreadingUnixStreamServer(path, _Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        assert (asked("livenessProbe"), asked("readinessProbe"), asked("startupProbe")) == (0, 1, 1)
        server.shutdown()
    assert asked("livenessProbe") == 1


def test_the_ingress_lets_in_what_the_server_takes_and_waits_as_long() -> None:
    ingress, defaults = the("gpus+ingress", "Ingress"), ServeSettings()
    annotations = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert annotations["proxy-body-size"] == f"{defaults.max_body_bytes // 2**20}m"
    assert int(annotations["proxy-read-timeout"]) >= max(defaults.request_timeout, defaults.sse_ping_interval)
    assert annotations["proxy-buffering"] == "off" and annotations["force-ssl-redirect"] == "true"


def test_a_route_waits_as_long_as_the_server() -> None:
    (rule,) = the("gpus+gateway", "HTTPRoute")["spec"]["rules"]
    assert set(rule["timeouts"].values()) == {f"{ServeSettings().request_timeout / 3600:.0f}h"}


@pytest.mark.parametrize("kind", ["Ingress", "HTTPRoute"])
def test_from_outside_there_is_nothing_but_what_clients_use(kind: str) -> None:
    rule = the("everything", kind)["spec"]["rules"][0]
    paths = ([path["path"] for path in rule["http"]["paths"]] if kind == "Ingress" else
             [match["path"]["value"] for match in rule["matches"]])
    served = {route.path for route in ROUTES}
    assert paths and all(any(route == path or route.startswith(path + "/") for route in served) for path in paths)
    assert not any(hidden.startswith(path) for path in paths for hidden in ("/metrics", "/admin/status", "/startupz"))


def test_the_certificate_of_the_ingress_is_for_its_host() -> None:
    spec = the("gpus+ingress", "Ingress")["spec"]
    assert spec["tls"][0]["hosts"] == [spec["rules"][0]["host"]]


def test_the_autoscaler_asks_for_metrics_that_the_adapter_makes_of_the_services_own() -> None:
    autoscaler = the("gpus+hpa", "HorizontalPodAutoscaler")
    wanted = {metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]}
    rules = yaml.safe_load((K8S / "components" / "hpa" / "adapter-rules.yaml").read_text())["rules"]
    assert wanted == {rule["name"]["as"] for rule in rules}
    ours = set(re.findall(r"`((?:vllm|quire):\w+)`", (ROOT / "docs" / "observability.md").read_text()))
    for rule in rules:
        assert rule["name"]["matches"] in ours and f'"{rule["name"]["matches"]}"' in rule["seriesQuery"]


def test_keda_asks_for_metrics_of_the_services_own_in_the_job_that_the_operator_makes() -> None:
    name = "gpus+keda"
    ours = set(re.findall(r"`((?:vllm|quire):\w+)`", (ROOT / "docs" / "observability.md").read_text()))
    label = the("monitoring", "ServiceMonitor")["spec"]["jobLabel"]
    (job,) = {service["metadata"]["labels"][label] for service in of_kind(name, "Service")}
    triggers = the(name, "ScaledObject")["spec"]["triggers"]
    for trigger in triggers:
        (metric, selector), = re.findall(r"\((\w+:\w+)\{(.*)\}\[1m\]\)", trigger["metadata"]["query"])
        assert metric in ours and selector == f'namespace="quire",job="{job}"'
    assert int(triggers[1]["metadata"]["threshold"]) < 256, "what a GPU of less than 70 GB runs at once"


def test_traces_go_where_the_network_lets_them(tmp_path: Path) -> None:
    endpoint = loaded("gpus+tracing", tmp_path).otlp_traces_endpoint
    policies = {policy["metadata"]["name"]: policy for policy in of_kind("gpus+tracing", "NetworkPolicy")}
    (rule,) = policies["quire-traces"]["spec"]["egress"]
    namespace = rule["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert endpoint is not None and f".{namespace}.svc:{rule['ports'][0]['port']}/" in endpoint


def test_the_cpu_overlay_asks_for_the_cores_that_its_threads_use(tmp_path: Path) -> None:
    settings = loaded("cpu", tmp_path)
    assert settings.engine.device == "cpu" and settings.engine.model == ServeSettings().engine.model
    assert str(settings.engine.cpu_threads) == container("cpu")["resources"]["requests"]["cpu"]


def test_several_gpus_are_several_servers_or_one_over_all(tmp_path: Path) -> None:
    assert loaded("gpus", tmp_path).engine.num_ranks == 1 and deployment("gpus")["replicas"] > 1
    assert loaded("tensor", tmp_path).engine.num_ranks > 1 and deployment("tensor")["replicas"] == 1
    assert loaded(RAY, tmp_path).engine.distributed_executor_backend == "ray"


def test_headers_of_proxies_are_believed_only_where_a_proxy_is(tmp_path: Path) -> None:
    believing = {name for name in BUILDS if loaded(name, tmp_path).forwarded_allow_ips}
    assert believing == {name for name in BUILDS if of_kind(name, "Ingress") or of_kind(name, "HTTPRoute")} != set()
