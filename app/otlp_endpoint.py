"""The address that traces go to: OTLP over HTTP, with its path. Collectors listen for gRPC on another port."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

GRPC_PORT, HTTP_PORT = 4317, 4318
PATH = "/v1/traces"
_CREDENTIALS = re.compile(r"(?<=//)[^/]*@|\?.*")
VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def problem(url: str) -> str | None:
    """Why traces cannot be sent there, and where they may."""
    if not url.startswith(("http://", "https://")):
        return f"does not begin with http:// or https://; traces go over HTTP, as to http://collector:{HTTP_PORT}{PATH}"
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
    except ValueError as error:
        return f"is no address: {error}"
    if port == GRPC_PORT:
        return f"names gRPC's port; traces go over HTTP, mostly to http://{host}:{HTTP_PORT}{PATH}"
    return None if host else "names no host"


def without_credentials(url: str) -> str:
    return _CREDENTIALS.sub("", url)


def with_path(url: str) -> str:
    """As OTLP has it, where none is given."""
    parts = urlsplit(url)
    return parts._replace(path=PATH).geturl() if parts.path in ("", "/") else url


def warnings(environment: Mapping[str, str]) -> Iterator[str]:
    """Of OpenTelemetry's own variables, which may be meant for others as well."""
    for name in VARIABLES:
        if name in environment and (said := problem(environment[name])):
            yield f"{name}: it {said}"
