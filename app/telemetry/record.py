"""What is known of one HTTP request by its end: filled in by middleware and endpoints, read by log, metrics, trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quire.engine.messages import NO_KEY, KeyLimits, RateState

if TYPE_CHECKING:
    from quire.engine.sampling_params import SamplingParams


CLIENT_DEADLINE = "client_deadline"  # why a request was refused, or ended: the client's own time for it was over


@dataclass(frozen=True, slots=True)
class Asked:
    """What a well-formed request of the model asked for."""

    operation: str  # "chat", "text_completion" or "embeddings"
    model: str
    stream: bool
    params: SamplingParams | None  # None: for vectors
    reply_id: str


@dataclass(slots=True)
class Content:
    """Prompts and outputs, kept only for who asked twice to have them logged."""

    prompts: list[str] = field(default_factory=list)
    outputs: dict[int, str] = field(default_factory=dict)  # by choice

    def add_output(self, choice: int, text: str) -> None:
        self.outputs[choice] = self.outputs.get(choice, "") + text


@dataclass(slots=True)
class RequestRecord:
    """Times are perf_counter's. A time that never came is None, so every duration may be None too."""

    request_id: str
    method: str = ""
    path: str = ""  # below --root-path
    client: str = ""  # address
    trace_id: str = ""  # ours, or the one that the client's traceparent names
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    status: int = 0
    key: KeyLimits = NO_KEY
    asked: Asked | None = None
    content: Content | None = None
    rate: RateState | None = None  # where its key stood when the engine let it in
    ignored: dict[str, None] = field(default_factory=dict)  # fields of the body that were passed over
    # What became of it: why it was refused (messages.REJECTIONS, or a word of the worker's), or ended before its time.
    rejected: str = ""
    aborted: str = ""  # "disconnect", "deadline" or "shutdown"
    # From here on what the engine did for it.
    num_samples: int = 0  # that the engine accepted
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    longest_output: int = 0  # tokens of its longest sample, so far
    num_resumed: int = 0  # times that it was handed to a new engine
    submitted: float | None = None
    taken_up: float | None = None  # by its first step
    first_token: float | None = None
    last_token: float | None = None
    finish_reasons: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether that is the server's fault: a 5xx, also one that came too late to be the reply's status."""
        return self.status >= 500 or self.aborted in ("deadline", "shutdown") or "error" in self.all_finish_reasons()

    @property
    def error_type(self) -> str:
        """A word for what went wrong; empty where nothing did."""
        word = self.rejected or self.aborted or (str(self.status) if self.status >= 400 else "")
        return word or ("error" if self.failed else "")

    @property
    def total_s(self) -> float:
        return (time.perf_counter() if self.ended is None else self.ended) - self.started

    @property
    def ttft_s(self) -> float | None:
        return _between(self.started, self.first_token)

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per output token after the first, of its longest sample."""
        decode_s = self.decode_s
        return None if decode_s is None or self.longest_output < 2 else decode_s / (self.longest_output - 1)

    @property
    def queue_s(self) -> float | None:
        return _between(self.submitted, self.taken_up)

    @property
    def prefill_s(self) -> float | None:
        return _between(self.taken_up, self.first_token)

    @property
    def decode_s(self) -> float | None:
        return _between(self.first_token, self.last_token)

    @property
    def inference_s(self) -> float | None:
        return _between(self.taken_up, self.last_token)

    def all_finish_reasons(self) -> list[str]:
        """One for each sample: those that never finished were aborted, or failed."""
        missing = self.num_samples - len(self.finish_reasons)
        return self.finish_reasons + ["abort" if self.aborted or self.rejected else "error"] * missing


def _between(begin: float | None, end: float | None) -> float | None:
    # Never negative: a time that another thread or process noted may come a moment late.
    return None if begin is None or end is None else max(0.0, end - begin)
