"""The RayCluster of the overlay `ray`: KubeRay's fields, the pods that its operator makes, who reaches them, and that
GPUs, sizes and versions fit together. What it has in common with the other overlays is in test_k8s.py."""

from __future__ import annotations

from typing import Any

import pytest

from quire.app.launcher import STOP_ENGINE_S, STOP_HTTP_MARGIN_S
from tests.deploy import kuberay
from tests.deploy.kustomize import RAY, of_kind, pod, settings_of, the
from tests.deploy.test_dockerfile import locked
from tests.deploy.test_k8s import VERSIONS, restricted_violations, size


def cluster() -> Any:
    return the(RAY, "RayCluster")


def head() -> Any:
    return kuberay.pods(cluster())[0]


def workers() -> Any:
    (only,) = kuberay.pods(cluster())[1:]
    return only


def both() -> list[Any]:
    return [head(), workers()]


def main_container(made: Any) -> Any:
    return made["spec"]["containers"][0]


def matches(labels: Any, made: Any) -> bool:
    return bool(labels.items() <= made["metadata"]["labels"].items())


def test_every_field_is_one_of_kuberays_and_its_templates_fit_kubernetes() -> None:
    schemas = pytest.importorskip("jsonschema")
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, for the schemas")
    schemas.validate(cluster(), kuberay.SCHEMA)
    service = {"apiVersion": "v1", "kind": "Service", **cluster()["spec"]["headGroupSpec"]["headService"]}
    for version in VERSIONS:
        for document in (*both(), service):
            validator.validate(document, version, strict=True)


def test_a_misspelt_field_of_a_raycluster_would_be_noticed() -> None:
    schemas = pytest.importorskip("jsonschema")
    wrong = cluster() | {"spec": cluster()["spec"] | {"workerGroupSpec": []}}
    with pytest.raises(schemas.ValidationError, match="workerGroupSpec"):
        schemas.validate(wrong, kuberay.SCHEMA)


def test_the_pods_that_kuberay_makes_are_restricted() -> None:
    for made in both():
        assert restricted_violations(made["spec"]) == []
        assert made["spec"]["automountServiceAccountToken"] is False and made["spec"]["enableServiceLinks"] is False
        for container in made["spec"]["containers"] + made["spec"].get("initContainers", []):
            assert container["securityContext"]["readOnlyRootFilesystem"]
    assert workers()["spec"]["initContainers"], "which is hardened with it"


def test_it_makes_no_probes_of_its_own_since_every_container_has_them() -> None:
    assert all({"startupProbe", "readinessProbe", "livenessProbe"} <= set(main_container(made)) for made in both())


def test_a_worker_is_asked_at_the_port_where_its_ray_listens() -> None:
    port = cluster()["spec"]["workerGroupSpecs"][0]["rayStartParams"]["node-manager-port"]
    probes = {name: probe for name, probe in main_container(workers()).items() if name.endswith("Probe")}
    assert {str(probe["tcpSocket"]["port"]) for probe in probes.values()} == {port}


def test_there_are_as_many_gpus_as_ranks_and_a_stage_is_within_a_pod() -> None:
    settings = settings_of(RAY)
    tensor, pipeline = (int(settings[f"QUIRE_{kind}_PARALLEL_SIZE"]) for kind in ("TENSOR", "PIPELINE"))
    (group,) = cluster()["spec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    gpus = [int(main_container(made)["resources"]["limits"]["nvidia.com/gpu"]) for made in both()]
    assert set(gpus) == {tensor} and gpus[0] + gpus[1] * group["replicas"] == tensor * pipeline
    assert all(f"--num-gpus={tensor} " in main_container(made)["env"][-1]["value"] for made in both())


def test_rays_version_is_the_images() -> None:
    assert cluster()["spec"]["rayVersion"] == locked("image-ray.txt")["ray"]


def test_every_node_has_the_same_image_settings_and_model() -> None:
    first, second = (main_container(made) for made in both())
    for part in ("image", "envFrom", "command", "resources", "securityContext"):
        assert first[part] == second[part]
    mounts = {(mount["mountPath"], mount["name"]) for mount in second["volumeMounts"]}
    assert ("/models", "models") in mounts
    assert settings_of(RAY)["QUIRE_MODEL"].startswith("/models/")
    assert {mount["name"] for mount in first["volumeMounts"]} - {name for _, name in mounts} == {"key"}, \
        "workers have no use for keys"


def test_a_workers_volumes_are_used_and_fit_its_memory() -> None:
    volumes = {volume["name"]: volume for volume in workers()["spec"]["volumes"]}
    assert set(volumes) == {mount["name"] for mount in main_container(workers())["volumeMounts"]}
    assert "emptyDir" in volumes["tmp"] and "medium" not in volumes["tmp"]["emptyDir"], "Ray's logs are no memory"
    on_disk = sum(size(volume["emptyDir"]["sizeLimit"]) for volume in volumes.values()
                  if "emptyDir" in volume and "medium" not in volume["emptyDir"])
    assert on_disk < size(main_container(workers())["resources"]["limits"]["ephemeral-storage"])


def test_workers_find_the_head_before_it_is_ready() -> None:
    service = cluster()["spec"]["headGroupSpec"]["headService"]["spec"]
    assert service == {"clusterIP": "None", "publishNotReadyAddresses": True}


def test_ray_asks_for_a_token_which_is_not_kept_where_the_api_key_is() -> None:
    assert cluster()["spec"]["authOptions"] == {"mode": "token"}
    secrets = {volume["secret"]["secretName"] for volume in pod(RAY)["volumes"] if "secret" in volume}
    assert secrets == {"quire"} and kuberay.token_secret(cluster()) not in secrets


def test_only_pods_of_the_cluster_reach_ray() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(RAY, "NetworkPolicy")}
    own = policies.pop("quire-ray")
    assert all(matches(own["podSelector"]["matchLabels"], made) for made in both())
    everything = [{"port": 1, "endPort": 65535, "protocol": "TCP"}]
    assert own["ingress"] == [{"from": [{"podSelector": own["podSelector"]}], "ports": everything}]
    assert own["egress"] == [{"to": [{"podSelector": own["podSelector"]}], "ports": everything}]
    others = {port["port"] for spec in policies.values() for rule in spec.get("ingress", []) for port in rule["ports"]}
    assert others == {"http"}
    assert all(matches(policies["quire-dns"]["podSelector"]["matchLabels"], made) for made in both())
    assert not any(matches(service["spec"]["selector"], workers()) for service in of_kind(RAY, "Service"))


def test_a_worker_outlasts_the_drain_of_the_head() -> None:
    settings = settings_of(RAY)
    drain_s = (float(settings["QUIRE_DRAIN_DELAY"]) + float(settings["QUIRE_SHUTDOWN_TIMEOUT"])
               + STOP_HTTP_MARGIN_S + STOP_ENGINE_S)
    stays_s = main_container(workers())["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain_s <= stays_s < workers()["spec"]["terminationGracePeriodSeconds"]


def test_what_would_belong_to_one_node_or_to_a_deployment_is_not_there() -> None:
    for kind in ("Deployment", "PersistentVolumeClaim", "PodDisruptionBudget"):
        assert of_kind(RAY, kind) == []
