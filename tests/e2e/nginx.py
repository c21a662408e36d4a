"""A real nginx before a server: TLS towards clients, HTTP/1.1 with kept connections towards us."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.e2e.server import free_port, listens, until

CONFIG = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format uri '$request_uri';
    access_log {directory}/access.log uri;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream quire {{ server {upstream}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {directory}/cert.pem;
        ssl_certificate_key {directory}/key.pem;
        client_max_body_size 32m;
        location / {{
            proxy_pass http://quire;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


@dataclass
class Nginx:
    port: int
    directory: Path
    trust: ssl.SSLContext

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def paths_seen(self) -> list[str]:
        return (self.directory / "access.log").read_text(errors="replace").splitlines()


@contextmanager
def nginx_before(upstream: str, directory: Path) -> Iterator[Nginx]:
    """`upstream` is host:port."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(os.fspath(directory / "cert.pem"))
    certificate.private_key_pem.write_to_path(os.fspath(directory / "key.pem"))
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(CONFIG.format(directory=directory, upstream=upstream, port=port))
    directory.chmod(0o755)  # nginx's own user reads it
    process = subprocess.Popen(["nginx", "-p", str(directory), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (directory / "error.log").read_text()
        yield Nginx(port, directory, ssl.create_default_context(cadata=authority.cert_pem.bytes().decode()))
    finally:
        process.terminate()
        process.wait(10)
