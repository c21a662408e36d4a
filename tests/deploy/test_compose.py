"""compose.yaml and its GPU layer: docker-compose takes them in every profile, every container is hardened, only nginx
is open to others, and what the files say of Quire is true of Quire."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire.app.options import OPTIONS, variable
from quire.app.sources import load
from tests.e2e.server import KEY

ROOT = Path(__file__).parents[2]
PLAIN, GPU = ("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")
PROFILES: list[tuple[str, ...]] = [(), ("observe", "load")]
ALWAYS = {"quire", "nginx"}
OBSERVE = {"prometheus", "alertmanager", "blackbox", "grafana", "collector"}
SPEC: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = SPEC["services"]

needs_compose = pytest.mark.skipif(shutil.which("docker-compose") is None,
                                   reason="Debian's package docker-compose is missing")


def config(files: tuple[str, ...], profiles: tuple[str, ...] = ()) -> dict[str, Any]:
    """The services as docker-compose understands them, without any choice of this shell's."""
    command = ["docker-compose", *(word for name in files for word in ("-f", name)),
               *(word for name in profiles for word in ("--profile", name)), "config"]
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("COMPOSE_", "QUIRE_", "LOAD_", "DOCKER_"))}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not run.stderr.strip(), run.stderr
    services: dict[str, Any] = yaml.safe_load(run.stdout)["services"]
    return services


@needs_compose
@pytest.mark.parametrize("files", [PLAIN, GPU], ids=["plain", "gpu"])
@pytest.mark.parametrize("profiles", PROFILES, ids="+".join)
def test_docker_compose_takes_every_profile(files: tuple[str, ...], profiles: tuple[str, ...]) -> None:
    assert set(config(files, profiles)) == set(SERVICES)  # version 1 shows those of other profiles, too


def test_what_starts_in_which_profile() -> None:
    in_profile = {profile: {name for name, service in SERVICES.items() if service.get("profiles", [""]) == [profile]}
                  for profile in ("", "observe", "load", "pull")}
    assert in_profile == {"": ALWAYS, "observe": OBSERVE, "load": {"locust"}, "pull": {"pull"}}


@needs_compose
def test_a_gpu_is_asked_for_only_with_the_gpu_file() -> None:
    assert "deploy" not in config(PLAIN)["quire"], "starts where there is no GPU"
    quire = config(GPU)["quire"]
    (device,) = quire["deploy"]["resources"]["reservations"]["devices"]
    assert device | {"count": int(device["count"])} == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert quire["environment"]["QUIRE_DEVICE"] == "cuda"
    assert quire["read_only"] is True and quire["environment"]["VLLM_API_KEY_FILE"], "the rest is as without"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in {"0", "root"}
    assert service["pids_limit"] > 0
    assert service["logging"]["options"]["max-size"]
    for volume in service.get("volumes", []):
        source, target, *options = volume.split(":") if not volume.startswith("$") else volume.rsplit(":", 2)
        assert "docker.sock" not in volume
        assert source in SPEC["volumes"] or options == ["ro"], f"{target} is the host's and may be written"


def test_images_are_pinned_and_name_no_host() -> None:
    for service in SERVICES.values():
        image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["image"])
        name, _, tag = image.rpartition(":")
        assert re.fullmatch(r"v?\d+\.\d+\.\d+[\w.-]*", tag), image
        assert name.count("/") <= 1 and "." not in name.split("/")[0], image


def test_only_nginx_is_open_to_other_machines() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:"), (name, port)
    assert "ports" not in SERVICES["quire"]


def test_what_is_mounted_exists() -> None:
    made_by_the_user = {"${QUIRE_MODELS:-./models}"}
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.rsplit(":", 2)[0] if volume.startswith("$") else volume.split(":")[0]
            assert source in SPEC["volumes"] or source in made_by_the_user or (ROOT / source).exists(), source
        for file in service.get("env_file", []):
            assert (ROOT / file).is_file()
        for secret in service.get("secrets", []):
            assert secret in SPEC["secrets"]


def test_nginx_finds_quire_and_is_the_only_proxy_that_it_believes() -> None:
    quire, nginx = SERVICES["quire"], SERVICES["nginx"]
    address = {name: _filled_in(service["networks"]["service"]["ipv4_address"])
               for name, service in (("quire", quire), ("nginx", nginx))}
    assert _filled_in(quire["environment"]["QUIRE_FORWARDED_ALLOW_IPS"]) == address["nginx"]
    assert _filled_in(nginx["extra_hosts"][0]) == f"quire:{address['quire']}"
    upstream = (ROOT / "deploy" / "nginx" / "upstream.conf").read_text()
    assert f"server quire:{quire['environment']['QUIRE_PORT']} " in upstream
    network = SPEC["networks"]["service"]["ipam"]["config"][0]
    for each in address.values():  # in the network, and not what Docker may give to another container
        assert ipaddress.ip_address(each) in ipaddress.ip_network(_filled_in(network["subnet"]))
        assert ipaddress.ip_address(each) not in ipaddress.ip_network(_filled_in(network["ip_range"]))
    listen = (ROOT / "deploy" / "nginx" / "listen.conf").read_text()
    assert nginx["ports"][0].endswith(":8443") and "listen 8443 ssl" in listen
    for path in re.findall(r"/run/secrets/(\w+)", listen):
        assert path in nginx["secrets"]


def test_prometheus_scrapes_the_services_that_there_are() -> None:
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    targets = set(re.findall(r'["/](\w+):(\d+)', text))
    assert {name for name, _ in targets} - {"127"} <= set(SERVICES)
    assert ("quire", SERVICES["quire"]["environment"]["QUIRE_ADMIN_PORT"]) in targets
    collector = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())
    reader = collector["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
    assert ("collector", str(reader["port"])) in targets


def test_the_collector_uses_what_it_defines_and_takes_what_quire_sends() -> None:
    collector = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(collector[kind])
    endpoint = re.search(r"http://collector:(\d+)/v1/traces", (ROOT / "compose.yaml").read_text())
    assert endpoint and collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(f":{endpoint[1]}")


def test_containers_have_time_to_drain() -> None:
    drain = float(SERVICES["quire"]["environment"]["QUIRE_SHUTDOWN_TIMEOUT"]) + 10
    assert "QUIRE_DRAIN_DELAY" not in SERVICES["quire"]["environment"], "nginx does not watch readiness"
    for name in ("quire", "nginx"):
        assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain


def test_quire_takes_the_settings_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    environment = {name: _filled_in(value) for name, value in SERVICES["quire"]["environment"].items()}
    examples = (ROOT / "deploy" / "compose" / "quire.env").read_text().replace("\n#", "\n").splitlines()[1:]
    environment |= dict(line.split("=", 1) for line in examples)
    known = {variable(name) for name in OPTIONS} | {
        "VLLM_API_KEY_FILE", "HF_HOME", "HF_TOKEN_PATH", "TRITON_CACHE_DIR"}
    assert set(environment) <= known
    loaded = load({}, environment | {"VLLM_API_KEY_FILE": str(tmp_path / "key")})  # which names all that is wrong
    assert loaded.settings.has_keys and loaded.settings.admin_port == 9000


def test_a_model_is_pulled_to_where_quire_looks_for_it_with_the_same_token() -> None:
    pull, quire = SERVICES["pull"], SERVICES["quire"]
    assert pull["image"] == quire["image"] and pull["build"] == quire["build"] and pull["user"] == quire["user"]
    for service in (pull, quire):
        assert service["environment"]["HF_HOME"].startswith("/cache/") and "cache:/cache" in service["volumes"]
        assert service["environment"]["HF_TOKEN_PATH"] == "/run/secrets/hf_token" and "hf_token" in service["secrets"]
    assert pull["environment"]["HF_HOME"] == quire["environment"]["HF_HOME"]
    assert pull["command"] == [quire["environment"]["QUIRE_MODEL"]] and "edge" in pull["networks"], "the way out"


def _filled_in(value: str) -> str:
    """With the defaults of compose's variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_secrets_are_made_once_and_lie_where_compose_looks(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    script = ROOT / "deploy" / "compose" / "secrets.sh"
    contents = []
    for _ in range(2):
        run = subprocess.run([script, str(directory), "quire.example"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        contents.append({path.name: path.read_text() for path in directory.iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {Path(secret["file"]).name for secret in SPEC["secrets"].values()}
    assert len(contents[0]["vllm_api_key"].strip()) >= 32 and contents[0]["hf_token"] == ""
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    # Each container reads them as a user of its own.
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o644}
    names = subprocess.run(["openssl", "x509", "-in", directory / "tls_certificate.pem", "-noout", "-ext",
                            "subjectAltName"], capture_output=True, text=True)
    assert "DNS:quire.example" in names.stdout


def test_no_file_holds_a_registrys_name_or_a_secret() -> None:
    deployed = [ROOT / "compose.yaml", ROOT / "compose.gpu.yaml"]
    for directory in ("compose", "nginx", "prometheus", "alertmanager", "grafana", "otel"):
        deployed += [path for path in (ROOT / "deploy" / directory).rglob("*") if path.is_file()]
    for path in deployed:
        text = path.read_text()
        images = re.findall(r"image: *(\S+)/", text)
        assert not [image for image in images if re.match(r"[^/]*[.:]", image)], path
        assert "PRIVATE KEY" not in text, path
