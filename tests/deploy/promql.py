"""What a PromQL expression asks for, and what there is: the metrics of docs/observability.md, which other tests compare
with what the service exports."""

from __future__ import annotations

import re

from tests.app.test_observability_docs import documented

# Prometheus' own, and the blackbox exporter's.
OTHERS = frozenset({"up", "probe_success", "probe_ssl_earliest_cert_expiry"})
_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_GROUPED = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
_NAME = r"(?<![\w:.$])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])"


def metrics_in(expression: str) -> set[str]:
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    bare = re.sub(_GROUPED, "", bare)
    return set(re.findall(_NAME, bare)) - _KEYWORDS


def unknown_in(expression: str, recorded: set[str]) -> set[str]:
    """Metrics of the expression that nobody exports or records."""
    exported = documented("Metrics")
    return {name for name in metrics_in(expression) - recorded - OTHERS
            if name not in exported and re.sub(r"_(bucket|sum|count)$", "", name) not in exported}
