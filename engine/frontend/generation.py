"""The text side of one request: token ids in, text out, until a stop string or the engine ends it.

Keeps every id produced, so that a request can be resubmitted after the engine restarts. Refuses to know the wire,
clocks and HTTP; called by the client, once for each `Delta`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.engine.errors import NOTHING_LEFT_TO_DRAW
from quire.engine.frontend.detokenizer import Detokenizer
from quire.engine.frontend.stop import StopFinder
from quire.engine.messages import Delta, TokenLogprobs
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer


@dataclass(slots=True)
class SampleUpdate:
    """What is new about one sample; text and ids are deltas, together they add up to the whole."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]  # parallel to token_ids; empty where none were asked for
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int | None = None  # known on the first update of a sample, None afterwards
    cumulative_logprob: float | None = None  # of a beam search, whose samples have one update each

    def absorb(self, later: SampleUpdate) -> None:
        """Tell what `later`, the next of the same sample, tells too."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason
        if self.num_cached_tokens is None:
            self.num_cached_tokens = later.num_cached_tokens


class Generation:
    """The samples of one request.

    With `tokenizer` None there is no text. With FINAL_ONLY each sample has one update, at its end.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: list[int], tokenizer: Tokenizer | None,
                 num_samples: int) -> None:
        self._samples = [_Sample(i, params, prompt_token_ids, tokenizer) for i in range(num_samples)]
        # Of each token of the prompt, where wanted: all are there before the first sample's first token, but that of
        # the first token, which nothing comes before.
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * len(prompt_token_ids)

    def push(self, index: int, delta: Delta) -> SampleUpdate | None:
        """What is new to show of sample `index`, or None while there is nothing (its tokens come with a later update).

        An update whose finish_reason is set although the delta's is not tells of a stop string: the caller then aborts
        the sample in the engine. Deltas of a finished sample are dropped.
        """
        if delta.prompt_logprobs is not None and self.prompt_logprobs is not None:
            first, tokens = delta.prompt_logprobs.first, delta.prompt_logprobs.tokens
            self.prompt_logprobs[first:first + len(tokens)] = tokens  # a resubmission tells them again
            return None
        return self._samples[index].push(delta)

    def token_ids(self, index: int) -> list[int]:
        """All ids produced so far: what a resubmission after a crash goes on from."""
        return self._samples[index].token_ids

    def sample_finished(self, index: int) -> bool:
        return self._samples[index].finish_reason is not None

    @property
    def finished(self) -> bool:
        return all(sample.finish_reason is not None for sample in self._samples)


@dataclass(slots=True)
class _News:
    """What the next update will tell."""

    text: str = ""
    first_token: int = 0  # place of its first token in the sample
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_cached_tokens: int | None = None
    cumulative_logprob: float | None = None


class _Sample:
    __slots__ = ("_cached_known", "_detokenizer", "_eager", "_finder", "_index", "_news", "_params", "finish_reason",
                 "stop_reason", "token_ids")

    def __init__(self, index: int, params: SamplingParams, prompt_token_ids: list[int],
                 tokenizer: Tokenizer | None) -> None:
        self._index = index
        self._params = params
        self._detokenizer: Detokenizer | None = None
        self._finder: StopFinder | None = None
        if tokenizer is not None and params.detokenize:
            self._detokenizer = Detokenizer(tokenizer, prompt_token_ids, params.skip_special_tokens,
                                            params.spaces_between_special_tokens, params.shown_token_ids)
            if params.stop:
                self._finder = StopFinder(list(params.stop), params.include_stop_str_in_output)
        self._eager = params.output_kind is not RequestOutputKind.FINAL_ONLY
        self._news = _News()
        self._cached_known = False
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def push(self, delta: Delta) -> SampleUpdate | None:
        if self.finish_reason is not None:
            return None
        if delta.num_cached_tokens >= 0 and not self._cached_known:  # a resubmission tells it again
            self._cached_known = True
            self._news.num_cached_tokens = delta.num_cached_tokens
        if self._finder is not None:
            self._search(delta, self._finder)
        else:
            self._take(delta)
        if self.finish_reason is None:
            if delta.finish_reason:
                self._end(delta)
            elif not self._eager or not self._has_news():
                return None
        return self._update()

    def _has_news(self) -> bool:
        if self._detokenizer is not None:
            return bool(self._news.text)
        return len(self.token_ids) > self._news.first_token

    def _take(self, delta: Delta) -> None:
        before = len(self.token_ids)
        self.token_ids += delta.token_ids
        self._news.logprobs += delta.logprobs
        self._news.cumulative_logprob = delta.cumulative_logprob
        if self._detokenizer is None:
            return
        if self._eager:
            self._news.text += self._detokenizer.push(self._shown(delta))
        elif delta.finish_reason:  # everything at once: the only time that this text is decoded
            self._news.text = self._detokenizer.push(self.token_ids[:before] + self._shown(delta))

    def _search(self, delta: Delta, finder: StopFinder) -> None:
        """Token by token, so that those behind a stop string are dropped."""
        assert self._detokenizer is not None
        num_shown = len(self._shown(delta))
        for i, token_id in enumerate(delta.token_ids):
            self.token_ids.append(token_id)
            self._news.logprobs += delta.logprobs[i:i + 1]
            if i >= num_shown:
                continue
            text = self._detokenizer.push([token_id])
            if len(self.token_ids) <= self._params.min_tokens:
                self._news.text += text
                continue
            self._find(text, finder)
            if self.finish_reason is not None:
                return

    def _find(self, text: str, finder: StopFinder) -> None:
        certain, stop = finder.push(text)
        self._news.text += certain
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop

    def _end(self, delta: Delta) -> None:
        """The engine ended the sample: nothing is held back any more."""
        if self._detokenizer is not None:
            rest = self._detokenizer.flush()
            if self._finder is None:
                self._news.text += rest
            else:
                self._find(rest, self._finder)
                self._news.text += self._finder.flush()
        if self.finish_reason is None:
            self.finish_reason = delta.finish_reason
            if delta.finish_reason == "error":
                self.stop_reason = NOTHING_LEFT_TO_DRAW  # the one way for a sample to end so
            if delta.stop_token_id in (self._params.stop_token_ids or ()):
                self.stop_reason = delta.stop_token_id

    def _shown(self, delta: Delta) -> list[int]:
        """The delta's tokens without the one that stopped the sample, unless that is to be seen."""
        if delta.token_ids[-1:] == [delta.stop_token_id] and not self._params.include_stop_str_in_output:
            return delta.token_ids[:-1]
        return delta.token_ids

    def _update(self) -> SampleUpdate:
        news = self._news
        self._news = _News(first_token=len(self.token_ids))
        return SampleUpdate(self._index, news.text, self.token_ids[news.first_token:], news.logprobs,
                            self.finish_reason, self.stop_reason, news.num_cached_tokens, news.cumulative_logprob)
