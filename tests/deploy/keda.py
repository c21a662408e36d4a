"""What KEDA, 2.17 and newer, takes in a ScaledObject, as far as ours goes; restated by hand from its reference.

No operator runs here. Knows nothing of Quire.
"""

from __future__ import annotations

from tests.deploy.kuberay import ANY, NUMBER, STRING, STRINGS, closed

_TRIGGER = closed(["type", "metadata"], type=STRING, name=STRING, metricType={"enum": ["AverageValue", "Value"]},
                  useCachedMetrics={"type": "boolean"}, metadata=closed(
                      ["serverAddress", "query", "threshold"], serverAddress=STRING, query=STRING, threshold=STRING,
                      activationThreshold=STRING, namespace=STRING, ignoreNullValues=STRING, unsafeSsl=STRING))
SCHEMA = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "keda.sh/v1alpha1"}, kind={"const": "ScaledObject"},
    metadata=closed(["name"], name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS),
    spec=closed(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=closed(["name"], apiVersion=STRING, kind=STRING, name=STRING, envSourceContainerName=STRING),
        pollingInterval=NUMBER, cooldownPeriod=NUMBER, initialCooldownPeriod=NUMBER, idleReplicaCount=NUMBER,
        minReplicaCount=NUMBER, maxReplicaCount=NUMBER,
        fallback=closed(
            ["failureThreshold", "replicas"], failureThreshold=NUMBER, replicas=NUMBER,
            behavior={"enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]}),
        advanced=closed([], restoreToOriginalReplicaCount={"type": "boolean"}, scalingModifiers=ANY,
                        horizontalPodAutoscalerConfig=closed([], name=STRING, behavior=ANY)),
        triggers={"type": "array", "minItems": 1, "items": _TRIGGER}))
