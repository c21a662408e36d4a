"""The service's log: one line a request at its end, and gunicorn's and uvicorn's own lines in the same form.

Pretty on a terminal, one JSON object a line otherwise (`engine.logs`). Never prompts, never keys, never query strings.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import structlog
from gunicorn import glogging

from app.telemetry.record import RequestRecord

log = structlog.get_logger("app.requests")

# Noise of uvicorn under gunicorn on every stop: both close the listening socket.
_NOISE = ("Error while closing socket",)


def log_request(record: RequestRecord) -> None:
    fields: dict[str, Any] = {
        "method": record.method, "path": record.path[:200], "status": record.status, "request_id": record.request_id,
        "ms": _ms(time.perf_counter() - record.started)}
    if record.key.name:
        fields["key"] = record.key.name
    if record.prompt_tokens:
        fields |= {"prompt_tokens": record.prompt_tokens, "output_tokens": record.output_tokens,
                   "ttft_ms": _ms(record.ttft_s), "tpot_ms": _ms(record.tpot_s),
                   "finish": ",".join(record.finish_reasons) or None}
    log.info("request", **fields)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


class StructlogHandler(logging.Handler):
    """Gives what libraries log to structlog. Their start-up chatter is debug: the launcher says what a person needs."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        level = logging.DEBUG if record.levelno == logging.INFO else record.levelno
        if not message.startswith(_NOISE):
            structlog.get_logger(record.name).log(level, message, exc_info=record.exc_info or None)


class GunicornLogger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's logger on structlog."""

    def setup(self, cfg: Any) -> None:
        self.error_log.handlers = [StructlogHandler()]
        self.error_log.propagate = False
        self.error_log.setLevel(self.LOG_LEVELS.get(cfg.loglevel, logging.INFO))
        self.access_log.handlers = []
