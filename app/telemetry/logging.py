"""The service's log: one line a request at its end, and gunicorn's and uvicorn's own lines in the same form.

Pretty on a terminal, one JSON object a line otherwise (`quire.engine.logs`). Never keys, never query strings; prompts
and outputs only where the record holds them, which takes two flags.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog
from gunicorn import glogging

from quire.app.telemetry.record import Content, RequestRecord

log = structlog.get_logger("app.requests")

MAX_CONTENT_CHARS = 10_000
_MAX_PATH_CHARS = 200
# Noise of uvicorn under gunicorn on every stop: both close the listening socket.
_NOISE = ("Error while closing socket",)


def log_request(record: RequestRecord) -> None:
    """The line of a request that ended. What does not apply to it is left out."""
    fields: dict[str, Any] = {
        "method": record.method, "path": record.path[:_MAX_PATH_CHARS], "status": record.status,
        "request_id": record.request_id, "trace_id": record.trace_id, "client": record.client,
        "key": record.key.name, "ms": _ms(record.total_s), "rejected": record.rejected, "aborted": record.aborted}
    if record.asked is not None:
        fields |= {"model": record.asked.model, "stream": record.asked.stream}
    if record.num_samples:
        fields |= {
            "prompt_tokens": record.prompt_tokens, "cached_tokens": record.cached_tokens,
            "output_tokens": record.output_tokens, "queue_ms": _ms(record.queue_s), "ttft_ms": _ms(record.ttft_s),
            "tpot_ms": _ms(record.tpot_s), "finish": ",".join(record.all_finish_reasons()),
            "resumed": record.num_resumed or None}
    if record.content is not None:
        fields |= _content(record.content)
    log.info("request", **{name: value for name, value in fields.items() if value not in (None, "")})


def _content(content: Content) -> dict[str, list[str]]:
    outputs = [content.outputs[choice] for choice in sorted(content.outputs)]
    return {"prompts": [text[:MAX_CONTENT_CHARS] for text in content.prompts],
            "outputs": [text[:MAX_CONTENT_CHARS] for text in outputs]}


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
