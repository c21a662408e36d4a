"""Debian's Prometheus with the shipped configuration and rules, its targets replaced by one server's metrics port."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e.server import until

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus"


@contextmanager
def shipped_prometheus(target: str, directory: Path) -> Iterator[str]:
    """Yields Prometheus' own URL. It scrapes every second, not every 15."""
    config = (SHIPPED / "prometheus.yml").read_text()
    assert "quire:9000" in config and "_interval: 15s" in config and "_timeout: 10s" in config
    (directory / "prometheus.yml").write_text(
        config.replace("quire:9000", target).replace("_interval: 15s", "_interval: 1s").replace(
            "_timeout: 10s", "_timeout: 1s"))
    shutil.copy(SHIPPED / "rules.yml", directory)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        ["prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}",
         f"--web.listen-address={address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _ready(address), 30)
        yield f"http://{address}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://{address}/-/ready").status_code == 200
    return False
