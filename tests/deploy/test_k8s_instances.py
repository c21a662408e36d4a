"""Several servers in one namespace, kept apart by a nameSuffix: each selects its own pods, and names its own objects.

A build with a suffix stands beside the same one without, and the labels are matched as Kubernetes would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy import kuberay
from tests.deploy.kustomize import BUILDS, RAY, Document, build

FOR_ALL_PODS = {"default-deny"}
# Secrets, and a claim.
OF_THE_USERS = {"quire", "quire-named-keys", "quire-tls", "quire-ingress-tls", "quire-hub", "quire-models"}

every_build = pytest.mark.parametrize("name", [name for name in BUILDS if "+" not in name or name.startswith(RAY)])
Where = tuple[str, str]  # kind and name of what holds a selector or a name


def one_and_other(name: str) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    return build(name, "-one"), build(name)


def pods_of(documents: tuple[Document, ...]) -> list[Document]:
    found = [document["spec"]["template"] for document in documents if document["kind"] == "Deployment"]
    clusters = [document for document in documents if document["kind"] == "RayCluster"]
    return found + [made for cluster in clusters for made in kuberay.pods(cluster)]


def selectors_of(documents: tuple[Document, ...]) -> Iterator[tuple[Where, dict[str, str]]]:
    """Of pods in the namespace."""
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        where = kind, document["metadata"]["name"]
        if kind == "Service":
            yield where, spec["selector"]
        elif kind in ("Deployment", "PodDisruptionBudget"):
            yield where, spec["selector"]["matchLabels"]
        elif kind == "NetworkPolicy":
            if not where[1].startswith(tuple(FOR_ALL_PODS)):
                yield where, spec["podSelector"]["matchLabels"]
            for peer in (peer for rule in (*spec.get("ingress", []), *spec.get("egress", []))
                         for peer in (*rule.get("from", []), *rule.get("to", []))):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    yield where, peer["podSelector"]["matchLabels"]
    for pod in (made["spec"] for made in pods_of(documents)):
        affinity = pod.get("affinity", {}).get("podAffinity", {})
        terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        for term in (*terms, *pod.get("topologySpreadConstraints", [])):
            yield ("Pod", "affinity or spread"), term["labelSelector"]["matchLabels"]


def matches(selector: dict[str, str], labelled: Document) -> bool:
    return selector.items() <= labelled["metadata"]["labels"].items()


@every_build
def test_selectors_find_ones_own_pods_and_no_others(name: str) -> None:
    one, other = one_and_other(name)
    selectors = list(selectors_of(one))
    assert selectors
    for where, selector in selectors:
        assert any(matches(selector, pod) for pod in pods_of(one)), where
        assert not any(matches(selector, pod) for pod in pods_of(other)), where


@every_build
def test_a_monitor_scrapes_ones_own_service_as_a_job_of_its_own(name: str) -> None:
    one, other = one_and_other(name)
    for monitor in (document for document in one if document["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [each for each in one if each["kind"] == "Service" and matches(wanted, each)]
        assert not any(each["kind"] == "Service" and matches(wanted, each) for each in other)
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "quire-one"


def names_in(documents: tuple[Document, ...]) -> Iterator[tuple[str, str]]:
    """Kind and name of what pods, routes and autoscalers speak of."""
    for pod in (made["spec"] for made in pods_of(documents)):
        yield "ServiceAccount", pod["serviceAccountName"]
        yield "PriorityClass", pod["priorityClassName"]
        for container in pod["containers"]:
            yield from (("ConfigMap", source["configMapRef"]["name"]) for source in container["envFrom"])
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
            if "secret" in volume:
                yield "Secret", volume["secret"]["secretName"]
    for document in documents:
        spec: Any = document.get("spec", {})
        if document["kind"] == "Ingress":
            yield from (("Service", path["backend"]["service"]["name"]) for rule in spec["rules"]
                        for path in rule["http"]["paths"])
        elif document["kind"] == "HTTPRoute":
            yield from (("Service", backend["name"]) for rule in spec["rules"] for backend in rule["backendRefs"])
        elif "scaleTargetRef" in spec:
            yield "Deployment", spec["scaleTargetRef"]["name"]


@every_build
def test_names_lead_to_what_is_there_or_is_the_users_own(name: str) -> None:
    one, _ = one_and_other(name)
    there = {(document["kind"], document["metadata"]["name"]) for document in one}
    for kind, named in names_in(one):
        assert (kind, named) in there or (kind in ("Secret", "PersistentVolumeClaim") and named in OF_THE_USERS), named


@every_build
def test_nothing_but_the_namespace_is_in_both(name: str) -> None:
    """So both can be applied."""
    first, second = ({(document["kind"], document["metadata"]["name"]) for document in documents}
                     for documents in one_and_other(name))
    assert first & second == {("Namespace", "quire")}
