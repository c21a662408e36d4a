"""The settings as the launcher passes them on to gunicorn and its workers, by a file in the run directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec

from quire.app.settings import ServeSettings
from quire.engine.errors import ConfigError
from quire.engine.frontend.shares import addresses


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher writes into the run directory for gunicorn and its workers: settled values, no keys."""

    serve: ServeSettings  # api_key is None here, whatever it was
    key_digests: list[str]  # SHA-256, hex, of the keys without a name
    run_dir: str
    started_at: int  # unix seconds; the "created" of the model cards
    admin_port: int | None = None  # as bound

    @property
    def engine_addresses(self) -> list[str]:
        return addresses(self.run_dir, self.serve.engine.data_parallel_size)

    @property
    def metrics_dir(self) -> str:
        return f"{self.run_dir}/metrics"

    @property
    def drain_file(self) -> str:
        """Exists while the server drains; holds the deadline, in seconds of CLOCK_MONOTONIC."""
        return f"{self.run_dir}/drain"

    @property
    def reload_file(self) -> str:
        """Written anew when keys, certificates and log level are to be read again; holds the log level."""
        return f"{self.run_dir}/reload"

    @property
    def last_good_key_file(self) -> str:
        """The named keys as they were read last without fault."""
        return f"{self.run_dir}/keys.json"

    @property
    def engine_starts_file(self) -> str:
        """Holds a byte for each start of an engine, so that all workers tell the same number of restarts."""
        return f"{self.run_dir}/engine_starts"

    @property
    def fetch_file(self) -> str:
        """Exists until the model's files are here and found readable; holds a FetchState."""
        return f"{self.run_dir}/fetch"

    @property
    def opened_file(self) -> str:
        """Exists once all engines were ready: from then on one is enough, also for a worker that comes later."""
        return f"{self.run_dir}/opened"

    @property
    def gone_file(self) -> str:
        """Exists once an engine is gone for good: see `gone_file`."""
        return f"{self.run_dir}/gone"

    def save(self) -> None:
        """Raises ConfigError where there is no room."""
        path = Path(self.run_dir) / "settings.json"
        try:
            path.touch(mode=0o600)
            path.write_bytes(msgspec.json.encode(self))
        except OSError as error:
            raise ConfigError(f"--run-dir: {self.run_dir} cannot be written to: {error.strerror}") from None

    @classmethod
    def from_run_dir(cls, run_dir: str) -> WorkerSettings:
        return msgspec.json.decode((Path(run_dir) / "settings.json").read_bytes(), type=cls)


def for_workers(settings: ServeSettings, run_dir: str, started_at: int,
                admin_port: int | None = None) -> WorkerSettings:
    return WorkerSettings(serve=dataclasses.replace(settings, api_key=None), key_digests=settings.key_digests(),
                          run_dir=run_dir, started_at=started_at, admin_port=admin_port)
