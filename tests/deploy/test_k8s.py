"""The Kubernetes manifests by themselves: schemas, Pod Security, names that refer to each other, networks, rollouts.

What they say about the service is in test_k8s_service.py. Nothing here needs a cluster, and none was asked.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import quire
from tests.deploy import keda
from tests.deploy.kustomize import (
    BUILDS,
    DEPLOYMENTS,
    K8S,
    OVERLAYS,
    RAY,
    ROOT,
    TWO,
    build,
    container,
    containers,
    deployment,
    of_kind,
    pod,
    settings_of,
    template,
    the,
)

VERSIONS = ("1.30", "1.37")
# Of operators and Gateway API: no part of Kubernetes' schemas.
CUSTOM = {"ServiceMonitor", "HTTPRoute", "RayCluster", "ScaledObject"}
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
SERVER = {"app.kubernetes.io/name": "quire", "app.kubernetes.io/component": "server",
          "app.kubernetes.io/instance": "quire"}
WIDER = {RAY: {"default-deny", "quire-dns", "quire-ray"}}  # policies that are for more pods than the server's
ALLOWED_VOLUMES = {"name", "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
                   "projected", "secret"}
UNITS = {"Mi": 2**20, "Gi": 2**30}

every_build = pytest.mark.parametrize("name", BUILDS)
every_deployment = pytest.mark.parametrize("name", DEPLOYMENTS)
with_gpu = pytest.mark.parametrize("name", [overlay for overlay in OVERLAYS if overlay != "cpu"])


_fitting: set[tuple[str, str]] = set()  # builds have most documents in common


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*BUILDS, TWO])
def test_every_document_fits_the_schema_of_its_kind(name: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, for the schemas")
    for document in build(name):
        seen = version, yaml.safe_dump(document)
        if document["kind"] not in CUSTOM and seen not in _fitting:
            validator.validate(document, version, strict=True)
            _fitting.add(seen)


def test_a_misspelt_field_would_be_noticed() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, for the schemas")
    wrong = {**the("gpu", "PodDisruptionBudget"), "spec": {"minAvalable": 1}}
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, VERSIONS[0], strict=True)


@every_build
def test_everything_is_in_the_one_namespace_and_there_once(name: str) -> None:
    seen = [(document["kind"], document["metadata"]["name"]) for document in build(name)]
    assert len(seen) == len(set(seen))
    assert {document["metadata"].get("namespace") for document in build(name)
            if document["kind"] not in CLUSTER_WIDE} == {"quire"}


# Pod Security


def restricted_violations(spec: Any) -> list[str]:
    """What keeps a pod from the profile "restricted" of the Pod Security Standards."""
    whole = spec.get("securityContext", {})
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += ["sysctls"] if whole.get("sysctls") else []
    found += [f"volume {volume['name']}" for volume in spec.get("volumes", []) if not set(volume) <= ALLOWED_VOLUMES]
    for one in spec["containers"] + spec.get("initContainers", []) + spec.get("ephemeralContainers", []):
        context = one.get("securityContext", {})
        effective = {**whole, **context}
        capabilities = context.get("capabilities", {})
        checks = {
            "privileged": not context.get("privileged"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "drop": capabilities.get("drop") == ["ALL"],
            "add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot": effective.get("runAsNonRoot") is True,
            "runAsUser": effective.get("runAsUser") != 0,
            "seccomp": effective.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "procMount": context.get("procMount", "Default") == "Default",
            "hostPort": not any(port.get("hostPort") for port in one.get("ports", [])),
            "profiles": not {"seLinuxOptions", "windowsOptions", "appArmorProfile"} & set(effective),
        }
        found += [check for check, passed in checks.items() if not passed]
    return found


@every_build
def test_pods_are_restricted_in_a_namespace_that_wants_it(name: str) -> None:
    assert restricted_violations(pod(name)) == []
    labels = the(name, "Namespace")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


def test_the_check_of_the_profile_sees_what_it_forbids() -> None:
    assert len(restricted_violations({"hostNetwork": True, "containers": [{"ports": [{"hostPort": 1}]}],
                                      "volumes": [{"name": "v", "hostPath": {"path": "/"}}]})) == 7


@every_build
def test_the_pod_has_the_images_user_a_read_only_root_and_no_token(name: str) -> None:
    spec, context = pod(name), pod(name)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (10001, 0)
    assert context["fsGroup"], "secrets of mode 0440 would be root's alone"
    assert container(name)["securityContext"]["readOnlyRootFilesystem"]
    assert spec["automountServiceAccountToken"] is False
    assert the(name, "ServiceAccount")["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == the(name, "ServiceAccount")["metadata"]["name"]
    assert spec["priorityClassName"] == the(name, "PriorityClass")["metadata"]["name"]
    assert spec["enableServiceLinks"] is False, "a Service quire-admin would be QUIRE_ADMIN_PORT=tcp://..."


@every_build
def test_secrets_are_mounted_so_that_they_can_be_renewed_and_others_cannot_read_them(name: str) -> None:
    mounts = {mount["name"]: mount for each in containers(name) for mount in each["volumeMounts"]}
    secrets = [volume for volume in pod(name)["volumes"] if "secret" in volume]
    assert "key" in {volume["name"] for volume in secrets}
    for volume in secrets:
        assert volume["secret"]["defaultMode"] == 0o440
        assert volume["secret"].get("optional", False) == (volume["name"] == "hub-token"), \
            "a server without its keys must not start"
        assert mounts[volume["name"]]["readOnly"] and "subPath" not in mounts[volume["name"]]


@every_build
def test_no_secret_is_shipped(name: str) -> None:
    assert of_kind(name, "Secret") == []
    assert yaml.safe_load((K8S / "secret.example.yaml").read_text())["stringData"] == {"api-key": ""}


@every_build
def test_the_image_is_of_this_version_and_of_no_registry(name: str) -> None:
    variant = {"cpu": "-model", RAY: "-ray"}.get(name.partition("+")[0], "")
    assert {each["image"] for each in containers(name)} == {f"quire:{quire.__version__}{variant}"}


# Room


@every_build
def test_every_volume_is_used_and_memory_volumes_fit_the_memory_limit(name: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
    assert set(volumes) == {mount["name"] for each in containers(name) for mount in each["volumeMounts"]}
    empty = [volume["emptyDir"] for volume in volumes.values() if "emptyDir" in volume]
    assert all("sizeLimit" in volume for volume in empty)
    in_memory = sum(size(volume["sizeLimit"]) for volume in empty if volume.get("medium") == "Memory")
    assert 2 * in_memory <= size(container(name)["resources"]["limits"]["memory"])


@every_build
def test_claims_exist_or_are_the_users_own(name: str) -> None:
    claimed = {volume["persistentVolumeClaim"]["claimName"] for volume in pod(name)["volumes"]
               if "persistentVolumeClaim" in volume}
    assert claimed - {"quire-models"} == {claim["metadata"]["name"] for claim in of_kind(name, "PersistentVolumeClaim")}


@with_gpu
def test_a_server_takes_as_many_gpus_as_it_splits_layers_over_and_may_run_where_only_gpu_pods_may(name: str) -> None:
    assert container(name)["resources"]["limits"]["nvidia.com/gpu"] == settings_of(name).get(
        "QUIRE_TENSOR_PARALLEL_SIZE", "1")
    assert [taint["key"] for taint in pod(name)["tolerations"]] == ["nvidia.com/gpu"]


@pytest.mark.parametrize(("name", "needed"), [("gpu", "1Gi"), ("tensor", "8Gi"), (RAY, "16Gi")])
def test_gpus_that_talk_to_each_other_have_shared_memory_for_it(name: str, needed: str) -> None:
    (shm,) = [volume["emptyDir"] for volume in pod(name)["volumes"] if volume["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": needed}


@pytest.mark.parametrize("name", ["gpu", "tensor", TWO])
def test_a_cache_has_room_for_two_revisions_of_its_model_and_for_kernels(name: str) -> None:
    """The rule of docs/deploy.md; a name's billions may be 9 % short of what the model has."""
    claims = {claim["metadata"]["name"]: claim["spec"]["resources"]["requests"]["storage"]
              for claim in of_kind(name, "PersistentVolumeClaim")}
    models = {config["metadata"]["name"].rpartition("-")[0].replace("quire", "quire-cache"): config["data"]
              for config in of_kind(name, "ConfigMap") if "QUIRE_MODEL" in config["data"]}
    assert set(models) == set(claims)
    for claim, settings in models.items():
        (billions,) = re.findall(r"-([\d.]+)B", settings["QUIRE_MODEL"])
        needed = 2 * 2 * float(billions) * 1.09e9 + 10 * UNITS["Gi"]
        assert needed <= size(claims[claim]) <= 1.3 * needed, claim


def test_the_cpu_overlay_wants_no_gpu_and_no_storage() -> None:
    assert "nvidia.com/gpu" not in container("cpu")["resources"]["limits"]
    assert of_kind("cpu", "PersistentVolumeClaim") == []


# Rollouts


@every_deployment
def test_a_rollout_never_waits_for_a_spare_gpu_or_for_the_cache_that_the_old_pod_holds(name: str) -> None:
    strategy = deployment(name)["strategy"]
    assert strategy["type"] == "Recreate" or strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("name", ["gpus", "gpus+nodes"])
def test_replicas_share_the_cache_where_it_can_be_mounted(name: str) -> None:
    (mode,) = the(name, "PersistentVolumeClaim")["spec"]["accessModes"]
    if mode == "ReadWriteOnce":
        (term,) = pod(name)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname" and term["labelSelector"]["matchLabels"] == SERVER
    else:
        assert mode == "ReadWriteMany" and "affinity" not in pod(name)
        spreads = pod(name)["topologySpreadConstraints"]
        assert [spread["labelSelector"]["matchLabels"] for spread in spreads] == [SERVER] * 2


@every_deployment
def test_nodes_can_be_drained(name: str) -> None:
    spec = the(name, "PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1 and "minAvailable" not in spec


@pytest.mark.parametrize(("name", "kind"), [("gpus+hpa", "HorizontalPodAutoscaler"), ("gpus+keda", "ScaledObject")])
def test_the_autoscaler_alone_decides_how_many_servers_there_are(name: str, kind: str) -> None:
    assert deployment("gpus")["replicas"] == 2 and "replicas" not in deployment(name)
    target = the(name, kind)["spec"]["scaleTargetRef"]
    assert target.get("kind", "Deployment") == "Deployment"
    assert target["name"] == the(name, "Deployment")["metadata"]["name"]


def test_both_autoscalers_are_as_slow_and_know_the_same_bounds() -> None:
    hpa, ours = the("gpus+hpa", "HorizontalPodAutoscaler")["spec"], the("gpus+keda", "ScaledObject")["spec"]
    assert ours["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    assert (ours["minReplicaCount"], ours["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert hpa["minReplicas"] > 0, "nobody holds a request until there is a server"


def test_every_field_of_the_scaledobject_is_one_of_kedas() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(the("gpus+keda", "ScaledObject"), keda.SCHEMA)
    wrong = the("gpus+keda", "ScaledObject") | {"spec": {"scaleTargetRef": {"name": "quire"}, "trigers": []}}
    with pytest.raises(jsonschema.ValidationError, match="trigers"):
        jsonschema.validate(wrong, keda.SCHEMA)


# Who finds whom


@every_build
def test_selectors_find_the_pods(name: str) -> None:
    selectors = [*(document["spec"]["selector"]["matchLabels"]
                   for document in (*of_kind(name, "Deployment"), *of_kind(name, "PodDisruptionBudget"))),
                 *(service["spec"]["selector"] for service in of_kind(name, "Service")),
                 *(policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(name, "NetworkPolicy")
                   if policy["metadata"]["name"] not in WIDER.get(name.partition("+")[0], {"default-deny"}))]
    assert template(name)["metadata"]["labels"] == SERVER and all(selector == SERVER for selector in selectors)


@every_build
def test_ports_are_called_by_names_that_exist(name: str) -> None:
    named = {port["name"] for port in container(name)["ports"]}
    services = {service["metadata"]["name"]: service for service in of_kind(name, "Service")}
    used = {port["targetPort"] for service in services.values() for port in service["spec"]["ports"]}
    used |= {port["port"] for policy in of_kind(name, "NetworkPolicy") for rule in policy["spec"].get("ingress", [])
             for port in rule["ports"] if "endPort" not in port}
    used |= {probe["httpGet"]["port"] for key, probe in container(name).items()
             if key.endswith("Probe") and "httpGet" in probe}
    assert used <= named
    for ingress in of_kind(name, "Ingress"):
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            backend = path["backend"]["service"]
            assert backend["port"]["name"] in {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
    for route in of_kind(name, "HTTPRoute"):
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        assert backend["port"] in {port["port"] for port in services[backend["name"]]["spec"]["ports"]}
    for monitor in of_kind(name, "ServiceMonitor"):
        matched = [service for service in services.values()
                   if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()]
        assert [service["spec"]["ports"][0]["name"] for service in matched] == [monitor["spec"]["endpoints"][0]["port"]]


# Networks


@every_build
def test_nothing_goes_in_or_out_that_no_policy_names(name: str) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(name, "NetworkPolicy")}
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                assert rule["ports"] and rule[peers], "an empty list would mean everything"
                assert all("ipBlock" in peer or (peer.get("namespaceSelector") or peer["podSelector"])["matchLabels"]
                           for peer in rule[peers])


@pytest.mark.parametrize(("name", "way_out"), [("gpu", {"quire-dns", "quire-hub"}), ("cpu", {"quire-dns"}),
                                               ("gpus+pull", {"quire-dns", "quire-hub"}),
                                               ("gpus+models", {"quire-dns"}), (RAY, {"quire-dns", "quire-ray"})])
def test_only_who_fetches_models_reaches_the_internet(name: str, way_out: set[str]) -> None:
    policies = of_kind(name, "NetworkPolicy")
    assert {policy["metadata"]["name"] for policy in policies if "egress" in policy["spec"]} == way_out


@every_build
def test_metrics_and_administration_are_only_for_prometheus(name: str) -> None:
    open_to = [policy["metadata"]["name"] for policy in of_kind(name, "NetworkPolicy")
               for rule in policy["spec"].get("ingress", []) if {"port": "admin", "protocol": "TCP"} in rule["ports"]]
    assert open_to == (["quire-metrics"] if of_kind(name, "ServiceMonitor") else [])


# The rules for the operator


def test_the_operators_rules_are_those_of_prometheus() -> None:
    rules = ROOT / "deploy" / "prometheus" / "rules.yml"
    done = subprocess.run([K8S / "prometheus-rule.sh"], cwd="/", text=True, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr
    document = yaml.safe_load(done.stdout)
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert document["metadata"]["namespace"] == "quire"
    assert document["spec"] == yaml.safe_load(rules.read_text())


def test_the_operators_job_is_one_that_the_rules_look_for() -> None:
    label = the("monitoring", "ServiceMonitor")["spec"]["jobLabel"]
    (job,) = {service["metadata"]["labels"][label] for service in of_kind("monitoring", "Service")}
    wanted = re.findall(r'job=~"([^"]+)"', (ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    assert wanted and all(re.fullmatch(pattern, job) for pattern in wanted)


def test_rules_keep_their_blocks_and_empty_lines_on_the_way(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("---\ngroups:\n\n  - name: a\n    rules:\n      - alert: A\n        expr: |\n"
                     "          up\n\n            == 0\n")
    done = subprocess.run([K8S / "prometheus-rule.sh", rules], text=True, capture_output=True, timeout=20, check=True)
    assert yaml.safe_load(done.stdout)["spec"] == yaml.safe_load(rules.read_text())
