"""nginx with the shipped configuration: only where it listens, its certificate and where the server is are replaced."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from tests.e2e.server import free_port, listens, until

SHIPPED = Path(__file__).parents[2] / "deploy" / "nginx"


@dataclass
class Nginx:
    port: int
    directory: Path
    trust: ssl.SSLContext

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def authority(self) -> Path:
        return self.directory / "authority.pem"

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "out").read_text().splitlines()]


def configured(directory: Path, upstream: str, port: int, changes: dict[str, str] | None = None) -> Path:
    """The configuration in `directory`; `changes` are made to quire.conf."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(os.fspath(directory / "authority.pem"))
    certificate.cert_chain_pems[0].write_to_path(os.fspath(directory / "tls_certificate"))
    certificate.private_key_pem.write_to_path(os.fspath(directory / "tls_key"))
    for name, replaced in {
        "nginx.conf": {},
        "upstream.conf": {"quire:8000": upstream},
        "listen.conf": {"listen 8443 ssl": f"listen 127.0.0.1:{port} ssl",
                        "/run/secrets": str(directory)},
        "quire.conf": changes or {},
    }.items():
        text = (SHIPPED / name).read_text()
        for old, new in replaced.items():
            assert old in text, (name, old)
            text = text.replace(old, new)
        (directory / name).write_text(text)
    return directory / "nginx.conf"


@contextmanager
def shipped_nginx(upstream: str, directory: Path, changes: dict[str, str] | None = None) -> Iterator[Nginx]:
    """`upstream` is host:port. Started as compose.yaml starts it."""
    port = free_port()
    config = configured(directory, upstream, port, changes)
    # As root, nginx would become somebody who may not enter pytest's directories; its container has no root.
    main = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
        process = subprocess.Popen(["nginx", "-p", str(directory), "-c", str(config), "-g", main],
                                   stdout=out, stderr=err)
    try:
        until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (directory / "err").read_text()
        yield Nginx(port, directory, ssl.create_default_context(cafile=os.fspath(directory / "authority.pem")))
    finally:
        process.terminate()
        process.wait(10)


def has_nginx() -> bool:
    return shutil.which("nginx") is not None
