"""structlog for every process of ours: pretty on a terminal, one JSON object a line otherwise. No prompts, no keys.

The level may change while a process runs: `set_level`, or `LevelFile` for a process that nobody can call.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TextIO, cast

import structlog

from quire.engine.redaction import redact
from quire.engine.stderr import stderr, take_over

ENGINE_NUMBER = "QUIRE_ENGINE"  # environment variable: which of several engines this process belongs to, if any
LEVELS = ("debug", "info", "warning", "error")  # that may be asked for
_SEVERITIES = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_threshold = _SEVERITIES["info"]


def configure_logging(level: str = "info") -> None:
    set_level(level)
    take_over()
    processors: list[structlog.typing.Processor] = [
        _drop_below_threshold,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if number := os.environ.get(ENGINE_NUMBER):
        processors.append(lambda logger, method, event: {"engine": int(number), **event})
    processors += [structlog.processors.format_exc_info, redact]
    if sys.stderr.isatty():
        processors.append(_escape)
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=processors,
        # A level given here would hold for good in every logger that was used before it changes.
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, stderr)),
        cache_logger_on_first_use=True,
    )


def _escape(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a client wrote must not move the cursor, or hide a line: a terminal obeys some characters. JSON has none."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            kept = "\n" if name == "exception" else ""
            event[name] = "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in value)
    return event


def set_level(level: str) -> None:
    """One of LEVELS, from now on, for all loggers of this process."""
    global _threshold
    _threshold = _SEVERITIES[level]


def level() -> str:
    """What `set_level` was last told."""
    return next(name for name, value in _SEVERITIES.items() if value == _threshold)


def _drop_below_threshold(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if _SEVERITIES.get(method, _threshold) < _threshold:
        raise structlog.DropEvent
    return event


class LevelFile:
    """Follows the log level that the launcher leaves in a file, as {"log_level": "debug"}; absent: no change."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = (0, 0)

    def follow(self) -> None:
        """A stat where nothing changed, so it may be called every second. Never raises."""
        try:
            found = os.stat(self._path)
            if (found.st_mtime_ns, found.st_ino) == self._seen:
                return
            self._seen = found.st_mtime_ns, found.st_ino
            with open(self._path, encoding="utf-8") as file:
                set_level(json.load(file)["log_level"])
        except FileNotFoundError:
            pass
        except Exception as error:
            structlog.get_logger(__name__).warning("log level unchanged", file=self._path, reason=repr(error))
