"""Errors as replies: what each says to a client and to the metrics."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.app.errors import ApiError, as_api_error, duration, retry_headers
from quire.engine.errors import EngineDeadError, InvalidRequestError, OverloadedError, PoisonRequestError


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0ms"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (59.999, "59.999s"), (60, "1m0s"),
    (360, "6m0s"), (86.4, "1m26.4s"), (3600, "1h0m0s"), (3661.5, "1h1m1.5s"), (-1, "0ms"),
])
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 10**6))
def test_a_duration_reads_back_and_is_never_too_short(seconds: float) -> None:
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    read = sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|[hms])", duration(seconds)))
    assert seconds - 1e-6 <= read <= seconds + 0.0011


@given(st.floats(0, 10**6))
def test_retry_after_is_whole_seconds_and_never_too_early(seconds: float) -> None:
    headers = retry_headers(seconds)
    assert int(headers["retry-after"]) >= max(1, seconds)
    assert int(headers["retry-after-ms"]) >= max(1, seconds * 1000)


@pytest.mark.parametrize(("error", "status", "reason", "should_retry"), [
    (InvalidRequestError("no", "n"), 400, "invalid", None),
    (OverloadedError("full", 1.0, reason="queue_tokens"), 503, "queue_tokens", None),
    (OverloadedError("slow", 1.0, own_limit=True, reason="key_tokens"), 429, "key_tokens", None),
    (EngineDeadError("gone"), 503, "", None),
    (PoisonRequestError("given up"), 500, "", "false"),
    (ApiError(404, "no such model", "model", reason="model"), 404, "model", None),
    (ApiError(413, "too large"), 413, "body_too_large", None),
    (RuntimeError("at /secret/path"), 500, "", None),
])
def test_each_error_has_its_status_reason_and_advice(error: Exception, status: int, reason: str,
                                                     should_retry: str | None) -> None:
    reply = as_api_error(error)
    assert (reply.status, reply.reason, reply.headers.get("x-should-retry")) == (status, reason, should_retry)
    assert "secret" not in reply.message
