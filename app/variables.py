"""Whose environment variables beginning with QUIRE_ are: those that are no setting's, and yet somebody's on purpose.

Knows no setting; called by app/sources.py when it reads the environment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

# The launcher's and the engine's word to their children, Compose's, and the load test's.
_NOT_SETTINGS = re.compile("QUIRE_(ENGINE|LIFELINE|LISTEN_FD|ADMIN_FD|LAUNCHER_PID|GPUS|HTTPS_PORT|IMAGE|MODELS|NETWORK"
                           "|SECRETS|MAX_TOKENS|PROMPT_TOKENS|WORKLOAD|SHAPE|USERS|SECONDS|RATE|STEPS|STEP_S|REPORT"
                           "|(SLO|GOOD)_.*)")
# Kubernetes sets these in every pod beside a Service whose name begins with quire.
_OF_KUBERNETES = re.compile(r"QUIRE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def is_kubernetes_port(name: str, value: str) -> bool:
    """QUIRE_PORT=tcp://..., beside a Service named quire; QUIRE_ADMIN_PORT beside one named quire-admin."""
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))


def mistyped(environment: Mapping[str, str], settings: Collection[str]) -> list[str]:
    """The names that are neither among `settings` nor known to be others'."""
    return [name for name, value in environment.items()
            if name.startswith("QUIRE_") and name not in settings and not _NOT_SETTINGS.fullmatch(name)
            and not _OF_KUBERNETES.fullmatch(name) and not is_kubernetes_port(name, value)]
