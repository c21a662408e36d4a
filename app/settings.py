"""The settings of `quire serve`: one typed schema, the sentence of `--help` for each, and what may be wrong with them.

Refuses to know where values come from (`quire.app.sources`), gunicorn, the engine's insides and how settings are used.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from dataclasses import dataclass, field

from quire.app import cors, otlp_endpoint
from quire.app.replies.thinking import AUTO, NONE, REASONING_PARSERS
from quire.app.replies.tools.formats import NAMES as TOOL_FORMATS
from quire.engine.config import EngineArgs
from quire.engine.logs import LEVELS

MAX_HTTP_WORKERS = 64
UNIX_PEERS = "unix"  # as a proxy: whoever comes through a Unix socket


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What the service itself needs, and in `engine` what it passes on. Key digests, never keys, leave the launcher."""

    engine: EngineArgs = field(default_factory=EngineArgs)
    host: str | None = field(default=None, metadata={"help": (
        "Address to listen on. Unset: 127.0.0.1 without an API key, 0.0.0.0 with one.")})
    port: int = field(default=8000, metadata={"help": "TCP port; 0 takes a free one and prints it."})
    uds: str | None = field(default=None, metadata={"help": "Unix socket to listen on instead of host and port."})
    root_path: str = field(default="", metadata={"help": (
        "Path prefix of a proxy; what it sends on with the prefix and without it is the same.")})
    api_key: list[str] | None = field(default=None, metadata={"help": (
        "Keys that clients may present as bearer token. Better as VLLM_API_KEY, several separated by commas: "
        "flags can be seen by other users of the machine.")})
    allow_public_without_key: bool = field(default=False, metadata={"help": (
        "Listen on an address that others can reach although there is no API key.")})
    allowed_origins: list[str] | None = field(default=None, metadata={"help": (
        "Origins whose pages may use the server from a browser (CORS), as https://chat.example.org, or * for any. "
        "Unset: none.")})
    allowed_methods: list[str] | None = field(default=None, metadata={"help": (
        "Methods that these pages may use. Unset or *: all.")})
    allowed_headers: list[str] | None = field(default=None, metadata={"help": (
        "Request headers that these pages may send. Unset or *: all.")})
    allow_credentials: bool = field(default=False, metadata={"help": (
        "Let these pages send cookies and client certificates, not only keys; needs named --allowed-origins.")})
    docs: bool = field(default=True, metadata={"help": (
        "Describe the API to anyone, at /openapi.json for programs and at /docs for people.")})
    served_model_name: list[str] | None = field(default=None, metadata={"help": (
        "Names that clients may use for the model; one who names none gets the first. Unset: the model as given.")})
    console: bool = field(default=True, metadata={"help": (
        "Answer / with a page to chat with the model and to watch the server; --no-console: that is a 404.")})
    response_role: str = field(default="assistant", metadata={"help": "Role of chat replies."})
    api_server_count: int | None = field(default=None, metadata={"help": (
        "HTTP worker processes. Unset: one for each 8 cores, 1 to 4.")})
    shutdown_timeout: float = field(default=60.0, metadata={"help": (
        "Seconds that running requests may still take after SIGTERM.")})
    drain_delay: float = field(default=0.0, metadata={"help": (
        "Seconds between saying 'not ready' and closing the port, for load balancers to notice.")})
    queue_timeout: float = field(default=300.0, metadata={"help": (
        "Seconds that a request may wait for its first step; then 503. 0: no limit. A request may ask for less with "
        "the header x-queue-timeout.")})
    ttft_timeout: float = field(default=600.0, metadata={"help": (
        "Seconds to a request's first token; then 504. 0: no limit. Shorter by x-ttft-timeout.")})
    request_timeout: float = field(default=3600.0, metadata={"help": (
        "Seconds that a request may take in all; then 504. 0: no limit. Shorter by x-request-timeout.")})
    sse_ping_interval: float = field(default=15.0, metadata={"help": (
        "Seconds of silence after which a stream gets a comment, for proxies that cut quiet ones. 0: none.")})
    max_body_bytes: int = field(default=16 * 2**20, metadata={"help": "Longest request body; beyond it, 413."})
    max_header_bytes: int = field(default=32 * 2**10, metadata={"help": "Longest request head; beyond it, 431."})
    max_headers: int = field(default=100, metadata={"help": "Most request headers; beyond it, 431."})
    header_timeout: float = field(default=10.0, metadata={"help": (
        "Seconds that a request's head may take to arrive; then the connection is cut.")})
    body_timeout: float = field(default=60.0, metadata={"help": "Seconds that a request's body may take to arrive."})
    keep_alive_timeout: float = field(default=75.0, metadata={"help": (
        "Seconds that a connection may stay open between requests; longer than a load balancer's own (often 60).")})
    max_connections_per_ip: int = field(default=1024, metadata={"help": (
        "Most connections of one address to one HTTP worker; 0: no limit. Proxies that --forwarded-allow-ips names "
        "have none.")})
    forwarded_allow_ips: list[str] | None = field(default=None, metadata={"help": (
        "Addresses or networks of proxies whose X-Forwarded-For is believed; 'unix': those that come through --uds. "
        "Unset: none.")})
    unknown_fields: str = field(default="refuse", metadata={"help": (
        "Fields of a request that this server does not have: refuse, or warn (pass them over and name them in the "
        "reply's header Warning).")})
    tool_call_parser: str = field(default=AUTO, metadata={"help": (
        "How the model writes calls of tools: auto (as its chat template says), or one of "
        f"{', '.join(TOOL_FORMATS)}.")})
    reasoning_parser: str = field(default=AUTO, metadata={"help": (
        "In which tags the model thinks: auto (as its chat template says), none, or one of "
        f"{', '.join(REASONING_PARSERS)}.")})
    max_n: int = field(default=128, metadata={"help": "Most samples (n) that a request may ask for."})
    max_stop_sequences: int = field(default=16, metadata={"help": "Most stop strings of a request."})
    max_prompts: int = field(default=1024, metadata={"help": "Most prompts of one completions request."})
    ssl_certfile: str | None = field(default=None, metadata={"help": (
        "Certificate chain (PEM) to serve HTTPS with; it is read again when it changes.")})
    ssl_keyfile: str | None = field(default=None, metadata={"help": "Its private key (PEM), not readable by others."})
    ssl_ca_certs: str | None = field(default=None, metadata={"help": "Authorities (PEM) for client certificates."})
    ssl_cert_reqs: int = field(default=0, metadata={"help": (
        "Client certificates: 0 not asked for, 1 checked where given, 2 required.")})
    ssl_ciphers: str | None = field(default=None, metadata={"help": "OpenSSL cipher list for TLS 1.2."})
    ssl_client_names: list[str] | None = field(default=None, metadata={"help": (
        "Subject alternative names that client certificates may have; unset: any that an authority signed.")})
    admin_port: int | None = field(default=None, metadata={"help": (
        "Own port for /metrics and /admin, which then leave the main one; there /metrics needs no key.")})
    admin_host: str = field(default="127.0.0.1", metadata={"help": "Address of --admin-port."})
    api_key_file: str | None = field(default=None, metadata={"help": (
        "File of named keys (quire keys create), read again when it changes.")})
    share_prefixes: bool = field(default=False, metadata={"help": (
        "Keys find each other's cached prompts: faster where they begin alike, and each can tell what others sent.")})
    audit_log: str | None = field(default=None, metadata={"help": "File that gets a line for every admin action."})
    engine_stall_timeout: float = field(default=60.0, metadata={"help": (
        "Seconds without a sign of life from a ready engine after which it is killed and started again.")})
    max_engine_restarts: int = field(default=4, metadata={"help": (
        "Restarts of an engine within five minutes; at the next failure it is given up, with the last one the server, "
        "too (exit code 70).")})
    otlp_traces_endpoint: str | None = field(default=None, metadata={"help": (
        "OTLP/HTTP address for traces, as http://collector:4318, with /v1/traces where it has no path; also "
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. Unset: no tracing.")})
    trace_sample_ratio: float = field(default=1.0, metadata={"help": (
        "Share of requests to trace that come without a sampling decision of their caller's.")})
    log_content: bool = field(default=False, metadata={"help": (
        "Log prompts and outputs; works only together with --log-content-is-permitted.")})
    log_content_is_permitted: bool = field(default=False, metadata={"help": (
        "Says that whoever is responsible for the data agrees to --log-content.")})
    log_level: str = field(default="info", metadata={"help": "debug, info, warning or error."})
    disable_access_log: bool = field(default=False, metadata={"help": "No log line per request."})
    enable_request_id_headers: bool = field(default=True, metadata={"help": (
        "Accepted for compatibility; every reply carries x-request-id.")})
    run_dir: str | None = field(default=None, metadata={"help": (
        "Directory for sockets and metrics, one per server. Unset: $RUNTIME_DIRECTORY, or a private temporary one.")})
    allow_shared_run_dir: bool = field(default=False, metadata={"help": (
        "Take a --run-dir that is another user's or open to others: a container's volume, which nobody else sees.")})

    @property
    def model_names(self) -> list[str]:
        return self.served_model_name or [self.engine.model]

    @property
    def address(self) -> str:
        """The host to bind."""
        return self.host or ("0.0.0.0" if self.has_keys else "127.0.0.1")

    @property
    def scheme(self) -> str:
        return "http" if self.ssl_certfile is None else "https"

    @property
    def has_keys(self) -> bool:
        """Requests need a key. Only the launcher can tell: what workers get holds no key."""
        return bool(self.api_key) or self.api_key_file is not None

    @property
    def num_http_workers(self) -> int:
        # A worker turns out some ten thousand stream chunks a second, more than a small engine makes; on a small
        # machine the engine needs the cores. Streams stay with their worker, so few workers balance better.
        return self.api_server_count or max(1, min(4, len(os.sched_getaffinity(0)) // 8))

    def key_digests(self) -> list[str]:
        return [hashlib.sha256(key.encode()).hexdigest() for key in self.api_key or []]

    def problems(self) -> list[str]:
        """Everything wrong with these values, a line each."""
        found = self.engine.problems()
        if not 0 <= self.port <= 65535:
            found.append(f"--port: {self.port} is not in 0..65535")
        if self.api_key is not None and not all(key.strip() for key in self.api_key):
            found.append("--api-key: a key is empty; give a key, or none at all")
        if not self.has_keys and not self.uds and not self.allow_public_without_key and not _is_loopback(self.address):
            found.append(f"--host: {self.address} can be reached by others and there is no API key; set VLLM_API_KEY "
                         "or --api-key-file, or say --allow-public-without-key")
        if self.api_server_count is not None and not 1 <= self.api_server_count <= MAX_HTTP_WORKERS:
            found.append(f"--api-server-count: {self.api_server_count} is not in 1..{MAX_HTTP_WORKERS}")
        if self.log_level not in LEVELS:
            found.append(f"--log-level: {self.log_level!r} is not one of {', '.join(LEVELS)}")
        if self.served_model_name is not None and not all(self.served_model_name):
            found.append("--served-model-name: a name is empty")
        if self.unknown_fields not in ("refuse", "warn"):
            found.append(f"--unknown-fields: {self.unknown_fields!r} is neither refuse nor warn")
        for name, known in (("tool_call_parser", (AUTO, *TOOL_FORMATS)),
                            ("reasoning_parser", (AUTO, NONE, *REASONING_PARSERS))):
            if getattr(self, name) not in known:
                found.append(f"{flag(name)}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        for name in ("shutdown_timeout", "drain_delay"):
            if not 0 <= getattr(self, name) <= 86400:
                found.append(f"{flag(name)}: {getattr(self, name)} is not in 0..86400 seconds")
        found += self._limit_problems() + self._tls_problems() + cors.problems(
            self.allowed_origins, self.allowed_methods, self.allowed_headers, credentials=self.allow_credentials)
        if self.max_body_bytes < 1024:
            found.append(f"--max-body-bytes: {self.max_body_bytes} is less than 1024")
        if self.root_path and not self.root_path.startswith("/"):
            found.append(f"--root-path: {self.root_path!r} does not begin with /")
        return found

    def _limit_problems(self) -> list[str]:
        found = []
        for name in ("queue_timeout", "ttft_timeout", "request_timeout", "sse_ping_interval"):
            if not 0 <= getattr(self, name) <= 86400:
                found.append(f"{flag(name)}: {getattr(self, name)} is not in 0..86400 seconds (0: none)")
        for name in ("header_timeout", "body_timeout", "keep_alive_timeout", "engine_stall_timeout"):
            if not 1 <= getattr(self, name) <= 86400:
                found.append(f"{flag(name)}: {getattr(self, name)} is not in 1..86400 seconds")
        for name, least in (("max_header_bytes", 1024), ("max_headers", 10), ("max_n", 1), ("max_stop_sequences", 1),
                            ("max_prompts", 1), ("max_connections_per_ip", 0), ("max_engine_restarts", 0)):
            if getattr(self, name) < least:
                found.append(f"{flag(name)}: {getattr(self, name)} is less than {least}")
        if self.otlp_traces_endpoint and (said := otlp_endpoint.problem(self.otlp_traces_endpoint)):
            shown = otlp_endpoint.without_credentials(self.otlp_traces_endpoint)
            found.append(f"--otlp-traces-endpoint: {shown!r} {said}")
        if not 0 <= self.trace_sample_ratio <= 1:
            found.append(f"--trace-sample-ratio: {self.trace_sample_ratio} is not in 0..1")
        if self.log_content and not self.log_content_is_permitted:
            found.append("--log-content: prompts are personal data; say --log-content-is-permitted too")
        found += [f"--forwarded-allow-ips: {proxy!r} is no address, no network (10.0.0.0/8) and not {UNIX_PEERS!r}"
                  for proxy in self.forwarded_allow_ips or [] if proxy != UNIX_PEERS and not _is_network(proxy)]
        if self.admin_port is not None and not 0 <= self.admin_port <= 65535:
            found.append(f"--admin-port: {self.admin_port} is not in 0..65535")
        if self.admin_port and self.admin_port == self.port and not self.uds:
            found.append(f"--admin-port: {self.admin_port} is --port too; take another, whatever the address")
        return found

    def _tls_problems(self) -> list[str]:
        found = []
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            found.append("--ssl-certfile: --ssl-certfile and --ssl-keyfile go together")
        if self.ssl_cert_reqs not in (0, 1, 2):
            found.append(f"--ssl-cert-reqs: {self.ssl_cert_reqs} is not one of 0, 1, 2")
        elif self.ssl_cert_reqs and self.ssl_ca_certs is None:
            found.append("--ssl-cert-reqs: client certificates need --ssl-ca-certs")
        if self.ssl_client_names is not None and self.ssl_cert_reqs != 2:
            found.append("--ssl-client-names: needs --ssl-cert-reqs 2")
        for name in ("ssl_ca_certs", "ssl_ciphers"):
            if getattr(self, name) is not None and self.ssl_certfile is None:
                found.append(f"{flag(name)}: needs --ssl-certfile and --ssl-keyfile")
        return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
