"""What KubeRay's operator, 1.6, takes in a RayCluster, and the pods that it makes of one.

Restated by hand from its API reference and its source: the names of its fields, and what of its pods ours depend on. No
operator runs here. Knows nothing of Quire.
"""

from __future__ import annotations

import copy
from typing import Any

Document = dict[str, Any]


def closed(required: list[str], **properties: Any) -> Document:
    """The schema of an object that has these properties and no others."""
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


ANY = {"type": "object"}  # a Kubernetes type, which has a schema of its own; or nothing that is used here
STRING, BOOLEAN, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
STRINGS = {"type": "object", "additionalProperties": STRING}

_GROUP = {"rayStartParams": STRINGS, "resources": STRINGS, "labels": STRINGS, "template": ANY}
_HEAD = closed(["template"], **_GROUP, headService=ANY, enableIngress=BOOLEAN, serviceType=STRING)
_WORKERS = closed(
    ["groupName", "minReplicas", "maxReplicas", "template"], **_GROUP, groupName=STRING, replicas=NUMBER,
    minReplicas=NUMBER, maxReplicas=NUMBER, numOfHosts=NUMBER, idleTimeoutSeconds=NUMBER, scaleStrategy=ANY,
    suspend=BOOLEAN)
SCHEMA = closed(
    ["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": "ray.io/v1"}, kind={"const": "RayCluster"},
    metadata=closed(["name"], name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS),
    spec=closed(
        ["headGroupSpec"], rayVersion=STRING, suspend=BOOLEAN, managedBy=STRING, headServiceAnnotations=STRINGS,
        enableInTreeAutoscaling=BOOLEAN, autoscalerOptions=ANY, gcsFaultToleranceOptions=ANY,
        authOptions=closed([], mode={"enum": ["disabled", "token"]}, secretName=STRING, enableK8sTokenAuth=BOOLEAN),
        upgradeStrategy=closed([], type={"enum": ["Recreate", "None"]}),
        headGroupSpec=_HEAD, workerGroupSpecs={"type": "array", "items": _WORKERS}))


def token_secret(cluster: Document) -> str:
    """The name of the Secret that the operator makes for `authOptions`."""
    return str(cluster["metadata"]["name"])


def start_command(group: Document) -> str:
    """What a container of the group finds in KUBERAY_GEN_RAY_START_CMD, but for the addresses."""
    (container,) = group["template"]["spec"]["containers"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    flags = {"num-cpus": requests["cpu"], "num-gpus": limits.get("nvidia.com/gpu", "0"), **group["rayStartParams"]}
    head = "" if "groupName" in group else "--head "
    return f"ray start {head}--block " + "".join(f" --{name}={value} " for name, value in sorted(flags.items()))


def groups(cluster: Document) -> list[Document]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def pods(cluster: Document) -> list[Document]:
    """One of each group, the head first. Workers wait for the head in a container made of their own; groups that lack
    a probe would get one that asks for Ray's dashboard."""
    found = []
    for group in groups(cluster):
        made = copy.deepcopy(group["template"])
        head = "groupName" not in group
        made["metadata"]["labels"] |= {
            "ray.io/cluster": cluster["metadata"]["name"], "ray.io/is-ray-node": "yes",
            "ray.io/node-type": "head" if head else "worker", "ray.io/group": group.get("groupName", "headgroup")}
        container = made["spec"]["containers"][0]
        if not head:
            made["spec"].setdefault("initContainers", []).append({
                "name": "wait-gcs-ready", "command": ["/bin/bash", "-c", "--"], "args": ["ray health-check"],
                **{name: container[name] for name in ("image", "imagePullPolicy", "securityContext", "volumeMounts")},
                "resources": {kind: {"cpu": "200m", "memory": "256Mi"} for kind in ("limits", "requests")}})
        container.setdefault("env", []).append(
            {"name": "KUBERAY_GEN_RAY_START_CMD", "value": start_command(group)})
        made["metadata"] |= {"name": made["metadata"]["labels"]["ray.io/group"],
                             "namespace": cluster["metadata"]["namespace"]}
        found.append({"apiVersion": "v1", "kind": "Pod", **made})
    return found
