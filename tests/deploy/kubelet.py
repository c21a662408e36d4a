"""What the kubelet makes of a container's probes: when the pod is ready, and when the container is ended.

Restated from Kubernetes' documentation. Knows nothing of Quire; time is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Ask = Callable[[str], bool]  # a path -> whether it was answered with success


@dataclass
class _Probe:
    path: str
    initial_delay_s: float
    period_s: float
    failure_threshold: int
    next_s: float = field(init=False)
    failures: int = 0
    succeeded: bool = False

    def __post_init__(self) -> None:
        self.next_s = self.initial_delay_s

    @property
    def failed(self) -> bool:
        return self.failures >= self.failure_threshold

    def look(self, now_s: float, ask: Ask) -> None:
        if now_s < self.next_s:
            return
        self.next_s += self.period_s
        self.succeeded = ask(self.path)
        self.failures = 0 if self.succeeded else self.failures + 1


def _probe(spec: dict[str, Any]) -> _Probe:
    return _Probe(spec["httpGet"]["path"], spec.get("initialDelaySeconds", 0), spec.get("periodSeconds", 10),
                  spec.get("failureThreshold", 3))


class Kubelet:
    """For one container. Seconds count from its start."""

    def __init__(self, container: dict[str, Any]) -> None:
        self._startup, self._readiness, self._liveness = (
            _probe(container[name]) if name in container else None
            for name in ("startupProbe", "readinessProbe", "livenessProbe"))
        self.ready = False
        self.ended = False

    def look(self, now_s: float, ask: Ask) -> None:
        """Probe what is due. The others wait for the startup probe's success."""
        if self._startup is not None and not self._startup.succeeded:
            self._startup.look(now_s, ask)
            self.ended = self._startup.failed
            if not self._startup.succeeded:
                return
        if self._readiness is not None:
            self._readiness.look(now_s, ask)
            self.ready = self._readiness.succeeded or (self.ready and not self._readiness.failed)
        if self._liveness is not None:
            self._liveness.look(now_s, ask)
            self.ended = self._liveness.failed
