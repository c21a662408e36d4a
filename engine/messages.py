"""Border 1: what an HTTP worker and the core say to each other (msgspec over ZeroMQ, or plain calls in one process).

Token ids and numbers only: no text to generate from, no configuration objects, no pickles.

A *sample* is one continuation of a prompt; a request with n=3 has three. The worker names each sample by an integer
of its own (`SampleSpec.id`, unique per connection and never reused), and every later word about it uses that integer.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# What msgspec raises for bytes that are not what was expected: text that is not UTF-8, and lists in lists in lists, are
# not among its own errors.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Beams(msgspec.Struct, array_like=True, frozen=True):
    """A beam search: the sequences that are likeliest as a whole. See `engine/scheduling/beam_search.py`."""

    width: int  # beams that go on with each step
    candidates: int  # of each beam's next tokens, how many are looked at: all that stop, and `width` others
    length_penalty: float = 1.0  # the score is the sum of log-probabilities / length ** length_penalty
    early_stopping: bool | Literal["never"] = False
    length_counts_prompt: bool = False  # vLLM's length: with the prompt, without a stop token


class Sampling(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """The numbers of sampling. `max_tokens` is always set here: the front end resolved "rest of the context"."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 16
    min_tokens: int = 0
    # Any of these ends the sample with finish "stop"; eos ids are in here unless ignore_eos.
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = -1  # how many alternatives per token; -1 = none wanted, 0 = only the sampled token's
    allowed_token_ids: bytes = b""  # int32 each; empty = all
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences that the output may not have
    logit_bias_ids: bytes = b""  # int32 each, and float32 each
    logit_biases: bytes = b""
    grammar: str = ""  # that the output follows, in llguidance's form; checked by the front end
    prompt_logprobs: int = -1  # how many alternatives to each token of the prompt; -1 = none wanted
    beams: Beams | None = None  # of a beam search, whose results the request's samples are, best first
    # "last" or "mean": no token is sampled (max_tokens is 0), what is wanted is the hidden state of the prompt's last
    # token, or the mean of all. "": tokens are.
    pooling: str = ""

    @property
    def num_alternatives(self) -> int:
        """As `logprobs`, with those that a beam search needs to know."""
        return self.logprobs if self.beams is None else max(self.logprobs, self.beams.candidates)


class Media(msgspec.Struct, array_like=True, frozen=True):
    """An image of a prompt, ready for the vision tower (or a frame of a video)."""

    digest: bytes  # of what the tower sees, framed and typed; equal digests mean equal features
    first: int  # place in the prompt of its first placeholder token
    num_tokens: int  # placeholders that it fills: t * h * w // merge_size ** 2
    grid: tuple[int, int, int]  # (t, h, w) in patches
    # File in shared memory: float32 [t * h * w, patch values], row-major, nothing else. Opened when it is submitted.
    path: str


class SampleSpec(msgspec.Struct, array_like=True, frozen=True):
    id: int
    seed: int  # 0 <= seed < 2**63; the token at a position is a pure function of (logits, seed, position)
    output_token_ids: list[int] = []  # produced before the engine crashed; the sample goes on after them


class KeyLimits(msgspec.Struct, array_like=True, frozen=True):
    """Whose request it is and what that key may do; 0 = no limit.

    Sent with every submission, so that the key file has one reader (the worker) and the door keeps only counts.
    """

    name: str = ""  # "" = the server asks for no key: all such requests share one queue and have no limits
    requests_per_minute: int = 0
    tokens_per_minute: int = 0  # prompt tokens at admission, output tokens as they are produced
    max_concurrent: int = 0  # unfinished requests
    weight: float = 1.0  # its share of the queue against other keys of the same priority


NO_KEY = KeyLimits()


class Submit(msgspec.Struct, array_like=True, tag="submit", frozen=True):
    instance: str  # EngineInfo.instance that the worker means; another engine drops it and the worker resubmits
    request_id: str
    prompt_token_ids: list[int]
    sampling: Sampling
    samples: list[SampleSpec]
    priority: int = 0  # lower runs first
    key: KeyLimits = NO_KEY
    cache_salt: str = ""  # requests share cached prefixes only under the same salt
    queue_timeout_s: float = 0.0  # refused when no step took it up by then; 0 = waits as long as it takes
    resumed: bool = False  # was accepted before, by this engine or one before it: passes the door, counted as running
    suspect: bool = False  # an engine may have died of it: runs when no other suspect is on trial (engine/trials.py)
    media: list[Media] = []  # in the prompt's order


class Abort(msgspec.Struct, array_like=True, tag="abort", frozen=True):
    ids: list[int]


class Heartbeat(msgspec.Struct, array_like=True, tag="heartbeat", frozen=True):
    """A worker says it lives, about once a second; its samples are aborted when it ends or falls silent."""

    pid: int = 0  # in the engine's own pid namespace; 0 = unknown, so that only silence tells of its end


class EngineInfo(msgspec.Struct, array_like=True, frozen=True):
    """What the engine found out about itself; the one place for discovered facts."""

    model: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    kv_tokens: int  # that fit into the blocks if no window ever lets go of one
    max_num_seqs: int
    max_num_batched_tokens: int
    max_logprobs: int
    instance: str  # changes with every engine start; a worker that sees a new one resubmits
    load_s: float = 0.0
    generates: bool = True  # False: the model has no head, and only prompts to be pooled are taken
    kv_type: str = ""  # of the KV cache's numbers, by torch's name


class Ready(msgspec.Struct, array_like=True, tag="ready", frozen=True):
    """Sent in answer to a worker's first heartbeat, and to all of them when the model is loaded."""

    info: EngineInfo
    after_kill: bool = False  # the engine before this one was killed from outside: it did not break by itself


class Loading(msgspec.Struct, array_like=True, tag="loading", frozen=True):
    phase: str
    fraction: float


class RateState(msgspec.Struct, array_like=True, frozen=True):
    """Where a key stands with its limits a minute, for the x-ratelimit headers; a limit of 0 is none."""

    limit_requests: int = 0
    remaining_requests: int = 0
    reset_requests_s: float = 0.0  # until all of them are there again
    limit_tokens: int = 0
    remaining_tokens: int = 0
    reset_tokens_s: float = 0.0


class Accepted(msgspec.Struct, array_like=True, tag="accepted", frozen=True):
    """The submission passed the door; its samples will get deltas until one with a finish reason."""

    ids: list[int]
    rate: RateState | None = None  # None: the key has no limits a minute


REJECTIONS = ("invalid", "queue_requests", "queue_tokens", "queue_timeout", "key_requests", "key_tokens",
              "key_concurrency")


class Rejected(msgspec.Struct, array_like=True, tag="rejected", frozen=True):
    """The whole submission is refused. May come after Accepted, when its time in the queue is over.

    kind: "invalid" (400), "limit" (429), "overloaded" (503); reason: one of REJECTIONS, for metrics.
    """

    ids: list[int]
    kind: str
    message: str
    param: str = ""
    retry_after_s: float = 0.0
    reason: str = "invalid"
    rate: RateState | None = None
    # The worker may refuse alike submissions itself, before tokenizing, for so long ("limit": of this key only).
    closed_s: float = 0.0
    spacing_s: float = 0.0  # of a full queue: how long it takes to let in one more submission alike


class Part(msgspec.Struct, array_like=True, frozen=True):
    """Of a sample's tokens, those that a step computes before one is sampled behind them."""

    id: int
    first: int
    end: int


class Started(msgspec.Struct, array_like=True, tag="started", frozen=True):
    """Told before each step that computes a part of a prompt, since the engine may end in it: see `resumption`.

    ids: samples that are taken up for the first time since they were submitted; their time in the queue is over.
    """

    ids: list[int]
    parts: list[Part] = []


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Of one produced token: its own log-probability and rank (1 = most likely), then the top alternatives."""

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class PromptLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Of the prompt's tokens from place `first` on, which is 1 at least: nothing comes before the first token."""

    first: int
    tokens: list[TokenLogprobs]


FINISH_REASONS = ("stop", "length", "abort", "error")


class Delta(msgspec.Struct, array_like=True):
    """What one step added to one sample."""

    id: int
    token_ids: list[int]
    finish_reason: str = ""  # one of FINISH_REASONS, or "" while it goes on
    stop_token_id: int = -1  # the id that ended it, where one did
    logprobs: list[TokenLogprobs] = []  # parallel to token_ids where wanted
    num_cached_tokens: int = -1  # prompt tokens found in the prefix cache; set on the first delta only
    prompt_logprobs: PromptLogprobs | None = None  # in a delta of its own, before the first that has a token
    cumulative_logprob: float | None = None  # of a beam search: the sum over all its tokens, which come in one delta
    pooled: bytes = b""  # what Sampling.pooling asks for, float32 each; in the only delta, which ends the sample


class Deltas(msgspec.Struct, array_like=True, tag="deltas"):
    """One frame per worker and step."""

    deltas: list[Delta]


class Distribution(msgspec.Struct, array_like=True, frozen=True):
    """A histogram since start. counts[i] holds what was at most bounds[i] and more than the bound before; the last,
    what was more than all."""

    bounds: list[float]
    counts: list[int]  # one more than bounds
    total: float


class Status(msgspec.Struct, array_like=True, tag="status", frozen=True):
    """Gauges and counters since start, about once a second, for metrics and health."""

    num_running: int
    num_waiting: int
    kv_usage: float  # 0..1
    prefix_queries: int  # tokens asked
    prefix_hits: int  # tokens found
    num_preemptions: int
    num_steps: int
    prompt_tokens: int
    generation_tokens: int
    last_step_age_s: float
    num_waiting_tokens: int = 0  # prompt and output tokens of waiting samples; of one prompt's samples, the first
    num_graph_steps: int = 0  # steps that a captured CUDA graph carried out
    step_seconds: Distribution | None = None  # from one step's launch to the next, while there was work
    step_samples: Distribution | None = None  # samples in a step
    step_tokens: Distribution | None = None  # tokens that a step computed
    log_lines_dropped: int = 0  # that standard error did not take


Down = Submit | Abort | Heartbeat
Up = Ready | Loading | Accepted | Rejected | Started | Deltas | Status
