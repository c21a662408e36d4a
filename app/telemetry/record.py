"""What is known of one HTTP request by its end: filled in by middleware and endpoints, read by log and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engine.messages import NO_KEY, KeyLimits


@dataclass(slots=True)
class RequestRecord:
    request_id: str
    method: str = ""
    path: str = ""  # below root_path
    started: float = field(default_factory=time.perf_counter)
    key: KeyLimits = NO_KEY
    status: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token: float | None = None  # perf_counter
    last_token: float | None = None
    finish_reasons: list[str] = field(default_factory=list)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.started

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per output token after the first."""
        if self.first_token is None or self.last_token is None or self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)
