"""What probes and /admin answer, as types for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Alive(msgspec.Struct):
    status: Literal["ok"]


class Hung(msgspec.Struct):
    """The engine gave no sign of life for too long, and nothing has replaced it."""

    status: Literal["hung"]
    silent_s: float


class Started(msgspec.Struct):
    status: Literal["started"]


class Ready(msgspec.Struct):
    status: Literal["ready", "degraded"]
    engines_gone: list[int] = []


class NotReady(msgspec.Struct):
    status: Literal["loading", "restarting", "draining", "gone", "hung"]
    phase: str | None = None  # of the loading, as the next three are
    fraction: float | None = None
    eta_s: float | None = None
    bytes: int | None = None  # of the model, where it is being fetched
    total_bytes: int | None = None
    silent_s: float | None = None


class Version(msgspec.Struct):
    version: str


class Requested(msgspec.Struct):
    """All workers will do it within a second."""

    status: Literal["requested"]
    log_level: str | None = None


class Keys(msgspec.Struct):
    keys: list[dict[str, Any]]


class Status(msgspec.Struct):
    version: str
    started_at: int
    uptime_s: int
    draining: bool
    engine: dict[str, Any]
    engines: list[dict[str, Any]]
    keys: dict[str, Any]
    log_level: str
    settings: dict[str, Any]
