"""Two models in one namespace behind LiteLLM: each server finds its own pods alone, and the gateway finds both.

LiteLLM itself is tried in test_litellm.py.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from quire.app.settings import ServeSettings
from tests.deploy.kustomize import TWO, Document, build, of_kind
from tests.deploy.test_k8s import restricted_violations
from tests.deploy.test_k8s_instances import matches, pods_of, selectors_of

GATEWAY = {"app.kubernetes.io/name": "litellm"}


def named(kind: str, name: str) -> Document:
    (found,) = [document for document in of_kind(TWO, kind) if document["metadata"]["name"] == name]
    return found


def config() -> Any:
    """LiteLLM's."""
    (found,) = [document["data"] for document in of_kind(TWO, "ConfigMap") if "config.yaml" in document["data"]]
    return yaml.safe_load(found["config.yaml"])


def settings_of_servers() -> dict[str, dict[str, str]]:
    """By the name of the Service."""
    configs = {document["metadata"]["name"]: document["data"] for document in of_kind(TWO, "ConfigMap")}
    return {server["metadata"]["name"]: configs[container["envFrom"][0]["configMapRef"]["name"]]
            for server in of_kind(TWO, "Deployment") for container in server["spec"]["template"]["spec"]["containers"]
            if "envFrom" in container}


def test_everything_is_there_once_and_in_one_namespace() -> None:
    seen = [(document["kind"], document["metadata"]["name"]) for document in build(TWO)]
    assert len(seen) == len(set(seen))
    assert {document["metadata"].get("namespace", "quire") for document in build(TWO)} == {"quire"}


@pytest.mark.parametrize("suffix", ["-large", "-small"])
def test_what_bears_a_servers_name_finds_its_pods_alone(suffix: str) -> None:
    selectors = [(where, selector) for where, selector in selectors_of(build(TWO)) if where[1].endswith(suffix)]
    assert {kind for (kind, _), _ in selectors} == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    for where, selector in selectors:
        found = [pod["metadata"]["labels"]["app.kubernetes.io/instance"] for pod in pods_of(build(TWO))
                 if matches(selector, pod)]
        assert found == [f"quire{suffix}"], where


def test_the_gateways_models_are_those_that_the_servers_serve() -> None:
    servers = settings_of_servers()
    assert len(servers) == len(config()["model_list"]) == 2
    for model in config()["model_list"]:
        address = urlsplit(model["litellm_params"]["api_base"])
        assert address.path == "/v1" and address.port == 8000
        provider, _, served = model["litellm_params"]["model"].partition("/")
        assert provider == "hosted_vllm" and served == servers[str(address.hostname)]["QUIRE_SERVED_MODEL_NAME"]
        assert named("Service", str(address.hostname))["spec"]["ports"][0]["port"] == address.port


def test_the_gateway_waits_as_long_as_the_server_and_tries_once() -> None:
    assert config()["litellm_settings"]["request_timeout"] == ServeSettings().request_timeout
    assert config()["litellm_settings"]["num_retries"] == config()["router_settings"]["num_retries"] == 0
    grace_s = {pod["spec"]["terminationGracePeriodSeconds"] for pod in pods_of(build(TWO))}
    assert grace_s == {180}, "streams pass through it"


def test_the_gateways_pod_is_restricted_and_takes_its_keys_from_secrets() -> None:
    template = named("Deployment", "litellm")["spec"]["template"]
    assert restricted_violations(template["spec"]) == []
    (container,) = template["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    keys = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
    asked = {value.removeprefix("os.environ/") for model in config()["model_list"]
             for value in [model["litellm_params"]["api_key"]]} | {"LITELLM_MASTER_KEY"}
    assert set(keys) == asked and not any(key.get("optional") for key in keys.values())
    assert {key["name"] for key in keys.values()} == {"litellm"}, "that of the servers may hold several, a line each"


def test_the_gateway_reaches_both_servers_and_clients_reach_the_gateway() -> None:
    servers = [pod for pod in pods_of(build(TWO)) if not matches(GATEWAY, pod)]
    (gateway,) = [pod for pod in pods_of(build(TWO)) if matches(GATEWAY, pod)]
    out, inward = named("NetworkPolicy", "litellm")["spec"], named("NetworkPolicy", "quire-litellm")["spec"]
    assert matches(out["podSelector"]["matchLabels"], gateway)
    for server in servers:
        assert matches(out["egress"][0]["to"][0]["podSelector"]["matchLabels"], server)
        assert matches(inward["podSelector"]["matchLabels"], server)
    assert matches(inward["ingress"][0]["from"][0]["podSelector"]["matchLabels"], gateway)
    assert out["egress"][0]["ports"] == inward["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert out["ingress"] == named("NetworkPolicy", "quire-clients-large")["spec"]["ingress"]
