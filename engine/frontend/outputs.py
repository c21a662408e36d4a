"""What `LLM.generate` and `AsyncLLMEngine.generate` give back: vLLM's names and meanings.

`OutputBuilder` shapes the updates of one `Generation` as the request's `output_kind` asks. Refuses to know the engine
and the wire; called by llm.py and async_llm.py. The HTTP front uses `SampleUpdate` directly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.pooling import Embedding
from quire.engine.messages import TokenLogprobs
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer


@dataclass(slots=True)
class Logprob:
    """The log-probability of one candidate at one position."""

    logprob: float
    rank: int | None = None  # 1 = most likely
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One continuation of the prompt."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None  # sum over all tokens so far; None without logprobs and beam search
    logprobs: list[dict[int, Logprob]] | None = None  # parallel to token_ids
    routed_experts: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None
    sampling_mask: Any = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestStateStats:
    """When things happened to a request; wall clock for the arrival, monotonic seconds for the rest.

    `scheduled_ts` is when word came that a step took it up; None from `LLM`, which does not ask.
    """

    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float | None = None
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0
    num_generation_tokens: int = 0
    is_corrupted: bool = False

    def count(self, num_tokens: int) -> None:
        """Note that so many tokens came just now."""
        now = time.monotonic()
        if not self.num_generation_tokens:
            self.first_token_ts = now
            self.first_token_latency = now - self.queued_ts
        self.num_generation_tokens += num_tokens
        self.last_token_ts = now


@dataclass(slots=True)
class RequestOutput:
    """A request as far as it has come; with DELTA, what is new since the last one."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # of the prompt's tokens; None of the first
    metrics: RequestStateStats | None = None
    lora_request: Any = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cached_tokens: int | None = None
    num_cache_creation_tokens: int | None = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None


@dataclass(slots=True)
class EmbeddingOutput:
    """A prompt's vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """What `LLM.embed` gives for each prompt."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(slots=True)
class PoolingOutput:
    """A prompt's vector as `encode` gives it: a list, where vLLM has a tensor."""

    data: list[float]


@dataclass(slots=True)
class PoolingRequestOutput:
    request_id: str
    outputs: PoolingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class EmbeddingBuilder:
    """Turns the only update of an `Embedding` into its output."""

    def __init__(self, request_id: str, prompt_token_ids: list[int], embedding: Embedding) -> None:
        self._request_id = request_id
        self._prompt_token_ids = prompt_token_ids
        self._embedding = embedding

    def push(self, update: SampleUpdate) -> EmbeddingRequestOutput:
        return EmbeddingRequestOutput(self._request_id, EmbeddingOutput(self._embedding.vector.tolist()),
                                      self._prompt_token_ids, update.num_cached_tokens or 0)


class OutputBuilder:
    """Turns the `SampleUpdate`s of one request into `RequestOutput`s.

    CUMULATIVE and FINAL_ONLY give all samples, DELTA the one that has news. The lists of a cumulative output grow with
    the request (a copy for every token would be quadratic): copy them to keep a state.
    """

    def __init__(self, request_id: str, prompt: str | None, prompt_token_ids: list[int], params: SamplingParams,
                 tokenizer: Tokenizer | None, metrics: RequestStateStats | None = None,
                 prompt_logprobs: list[TokenLogprobs | None] | None = None) -> None:
        """`prompt_logprobs`: Generation's own list, which is full before the first update."""
        self._request_id = request_id
        self._prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._kind = params.output_kind
        self._with_logprobs = params.logprobs is not None
        self._tokenizer = tokenizer
        self._told = prompt_logprobs
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # made for the first output
        self._metrics = metrics
        self._num_cached_tokens: int | None = None
        self._num_unfinished = params.n
        self._samples = [self._empty(i) for i in range(params.n)]

    def push(self, update: SampleUpdate) -> RequestOutput | None:
        """The output to show after `update`; None with FINAL_ONLY before the last sample ends."""
        if update.num_cached_tokens is not None:
            self._num_cached_tokens = update.num_cached_tokens
        if update.finish_reason is not None:
            self._num_unfinished -= 1
        sample = self._grown(update)
        if self._kind is RequestOutputKind.DELTA:
            return self._output([sample])
        if self._kind is RequestOutputKind.FINAL_ONLY and self._num_unfinished:
            return None
        return self._output(list(self._samples))

    def _grown(self, update: SampleUpdate) -> CompletionOutput:
        old = self._samples[update.index]
        base = self._empty(update.index) if self._kind is RequestOutputKind.DELTA else old
        new = replace(base, text=base.text + update.text, cumulative_logprob=old.cumulative_logprob,
                      finish_reason=update.finish_reason, stop_reason=update.stop_reason)
        new.token_ids += update.token_ids
        if new.logprobs is not None and new.cumulative_logprob is not None:
            new.logprobs += [self._logprobs(i, p) for i, p in zip(update.token_ids, update.logprobs)]
            new.cumulative_logprob += sum(p.logprob for p in update.logprobs)
        if update.cumulative_logprob is not None:
            new.cumulative_logprob = update.cumulative_logprob
        self._samples[update.index] = new
        return new

    def _logprobs(self, token_id: int, of: TokenLogprobs) -> dict[int, Logprob]:
        """The sampled token first, then the most likely ones in order."""
        found = {token_id: Logprob(of.logprob, of.rank, self._text(token_id))}
        for rank, (other, logprob) in enumerate(zip(of.top_ids, of.top_logprobs), 1):
            found.setdefault(other, Logprob(logprob, rank, self._text(other)))
        return found

    def _text(self, token_id: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.token_text(token_id)

    def _empty(self, index: int) -> CompletionOutput:
        if self._with_logprobs:
            return CompletionOutput(index, "", [], cumulative_logprob=0.0, logprobs=[])
        return CompletionOutput(index, "", [])

    def _output(self, samples: list[CompletionOutput]) -> RequestOutput:
        if self._told is not None and self._prompt_logprobs is None:
            self._prompt_logprobs = [None if of is None else self._logprobs(token_id, of)
                                     for token_id, of in zip(self._prompt_token_ids, self._told)]
        return RequestOutput(self._request_id, self._prompt, self._prompt_token_ids, samples,
                             finished=self._num_unfinished == 0, prompt_logprobs=self._prompt_logprobs,
                             metrics=self._metrics, num_cached_tokens=self._num_cached_tokens)
