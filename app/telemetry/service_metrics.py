"""What the worker that answers a scrape knows of the server as a whole: its build, keys, certificate, engine starts.

The same in every worker, so that it does not matter which one answers.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire import __version__

if TYPE_CHECKING:
    from quire.app.service import Service


class ServiceCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service
        self._build = {"version": __version__, "python": platform.python_version(), "torch": _version("torch")}

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("quire:build_info", "Versions, as labels; always 1", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build
        yield CounterMetricFamily("quire:engine_restarts", "Times that an engine was started again",
                                  self._num_restarts())
        service = self._service
        if service.settings.serve.api_key_file is not None:
            yield GaugeMetricFamily("quire:key_file_ok", "1 while the key file could be used when it was last read",
                                    service.keys.healthy)
            yield GaugeMetricFamily("quire:keys_loaded_timestamp_seconds", "When the keys in use were read",
                                    service.keys.loaded_at)
        if service.tls is not None:
            yield GaugeMetricFamily("quire:certificate_ok", "1 while the certificate's files could be used when they "
                                    "were last read", service.tls.healthy)
            yield GaugeMetricFamily("quire:certificate_not_after_seconds",
                                    "When the certificate in use expires, in unix time", service.tls.not_after)

    def _num_restarts(self) -> int:
        try:
            num_starts = os.stat(self._service.settings.engine_starts_file).st_size
        except FileNotFoundError:  # nobody started one: a test's engine
            return 0
        return max(0, num_starts - self._service.settings.serve.engine.data_parallel_size)


def _version(package: str) -> str:
    """Without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
