"""Debian's Prometheus with the shipped configuration and rules, its targets replaced by one server's metrics port."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.prometheus import running_prometheus

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
    with running_prometheus(directory / "prometheus.yml") as url:
        yield url
