"""Builds of deploy/k8s: every overlay, every component on overlays with and without a GPU, and all of them together, as
far as they go together; on the one that has no Deployment, those that patch none. Two models are two of these beside a
gateway, and have tests of their own.

Knows kubectl and the folders, nothing of what is in them.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
Document = dict[str, Any]

TWO = "two-models"
OVERLAYS = sorted({path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml")} - {TWO})
COMPONENTS = sorted(str(path.parent.relative_to(K8S / "components")) for path in K8S.rglob("kustomization.yaml")
                    if path.is_relative_to(K8S / "components"))
RAY = "ray"  # a RayCluster's head is the server's pod
_WITHOUT_A_DEPLOYMENT = ["gateway", "ingress", "monitoring", "tracing"]
_LAST = ["tls", "tls/exec-probes"]  # they change what others bring
_INSTEAD = {"models": "pull", "hpa": "keda"}  # one or the other
_OF_GPUS = ["pull"]  # nothing is fetched without one


def _builds() -> dict[str, tuple[str, list[str]]]:
    found: dict[str, tuple[str, list[str]]] = {overlay: (overlay, []) for overlay in OVERLAYS}
    for component in COMPONENTS:
        for overlay in ("gpus",) if component in _OF_GPUS else ("cpu", "gpus"):
            found[f"{overlay}+{component}"] = overlay, [*_LAST[:_LAST.index(component)], component] \
                if component in _LAST else [component]
    found |= {f"{RAY}+{component}": (RAY, [component]) for component in _WITHOUT_A_DEPLOYMENT}
    for name, left_out in (("everything", _INSTEAD.values()), ("everything else", _INSTEAD)):
        found[name] = "gpus", [*(component for component in COMPONENTS if component not in (*_LAST, *left_out)), *_LAST]
    return found


BUILDS = _builds()
DEPLOYMENTS = [name for name, (overlay, _) in BUILDS.items() if overlay != RAY]


@functools.cache
def _copy() -> Path:
    """kustomize takes no absolute paths, so combinations are made in a copy."""
    folder = tempfile.mkdtemp(prefix="quire-k8s-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(shutil.copytree(K8S, Path(folder, "k8s")))


@functools.cache
def build(name: str, suffix: str = "") -> tuple[Document, ...]:
    """The documents of a build, as `kubectl apply -k` would send them; `suffix`: with this nameSuffix."""
    if name == TWO:
        return _rendered(K8S / "overlays" / TWO)
    overlay, components = BUILDS[name]
    folder = _copy() / "builds" / (name.replace("/", "-") + suffix)
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [os.path.relpath(_copy() / "overlays" / overlay, folder)],
        "nameSuffix": suffix,
        "components": [os.path.relpath(_copy() / "components" / component, folder) for component in components]}))
    return _rendered(folder)


def _rendered(folder: Path) -> tuple[Document, ...]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, for its kustomize")
    done = subprocess.run([kubectl, "kustomize", str(folder)], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(name: str, kind: str) -> list[Document]:
    return [document for document in build(name) if document["kind"] == kind]


def the(name: str, kind: str) -> Document:
    """The only one of its kind."""
    (found,) = of_kind(name, kind)
    return found


def deployment(name: str) -> Document:
    """Its spec."""
    return the(name, "Deployment")["spec"]


def template(name: str) -> Document:
    """Of the server's pods."""
    if BUILDS[name][0] == RAY:
        return the(name, "RayCluster")["spec"]["headGroupSpec"]["template"]
    return deployment(name)["template"]


def pod(name: str) -> Document:
    """The spec of the server's pods."""
    return template(name)["spec"]


def container(name: str) -> Document:
    (only,) = pod(name)["containers"]
    return only


def containers(name: str) -> list[Document]:
    """Also those that run before the server."""
    return [*pod(name).get("initContainers", []), container(name)]


def settings_of(name: str) -> dict[str, str]:
    """The pod's environment."""
    config = the(name, "ConfigMap")
    assert container(name)["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    assert "env" not in container(name)
    return config["data"]
