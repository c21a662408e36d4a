from __future__ import annotations

import pytest

from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.outputs import Logprob, OutputBuilder, RequestOutput
from quire.engine.messages import TokenLogprobs
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer

A, B, C = 330, 331, 332


def outputs(tokenizer: Tokenizer | None, kind: RequestOutputKind, updates: list[SampleUpdate], n: int = 1,
            logprobs: int | None = None) -> list[RequestOutput]:
    params = SamplingParams(n=n, output_kind=kind, logprobs=logprobs)
    builder = OutputBuilder("id", "prompt", [1, 2], params, tokenizer)
    return [output for update in updates if (output := builder.push(update)) is not None]


def updates() -> list[SampleUpdate]:
    return [SampleUpdate(0, "a", [A], [TokenLogprobs(-1.0, 2, [B, A], [-0.5, -1.0])], num_cached_tokens=16),
            SampleUpdate(0, "bc", [B, C], [TokenLogprobs(-2.0, 1, [B, A], [-2.0, -3.0]),
                                           TokenLogprobs(-4.0, 9, [B, A], [-0.1, -0.2])], "stop", "x")]


def test_cumulative_outputs_hold_everything_so_far() -> None:
    texts = [(o.outputs[0].text, o.finished) for o in outputs(None, RequestOutputKind.CUMULATIVE, updates())]
    assert texts == [("a", False), ("abc", True)]
    last = outputs(None, RequestOutputKind.CUMULATIVE, updates())[-1]
    assert (last.request_id, last.prompt, last.prompt_token_ids, last.num_cached_tokens) == ("id", "prompt", [1, 2], 16)
    sample = last.outputs[0]
    assert (sample.token_ids, sample.finish_reason, sample.stop_reason) == ([A, B, C], "stop", "x")
    assert (sample.logprobs, sample.cumulative_logprob) == (None, None)
    assert sample.finished()


def test_delta_outputs_hold_what_is_new() -> None:
    first, last = outputs(None, RequestOutputKind.DELTA, updates(), logprobs=2)
    assert [(o.outputs[0].text, o.outputs[0].token_ids) for o in (first, last)] == [("a", [A]), ("bc", [B, C])]
    assert [len(o.outputs[0].logprobs or []) for o in (first, last)] == [1, 2]
    assert [o.outputs[0].cumulative_logprob for o in (first, last)] == [-1.0, -7.0]


def test_final_only_waits_for_every_sample() -> None:
    some = [SampleUpdate(1, "one", [A], [], "length"), SampleUpdate(0, "zero", [B], [], "stop")]
    (only,) = outputs(None, RequestOutputKind.FINAL_ONLY, some, n=2)
    assert [(o.index, o.text, o.finish_reason) for o in only.outputs] == [(0, "zero", "stop"), (1, "one", "length")]
    assert only.finished


def test_logprobs_name_the_sampled_token_and_the_best(smollm2: Tokenizer) -> None:
    (last,) = outputs(smollm2, RequestOutputKind.FINAL_ONLY, updates()[1:], logprobs=2)
    logprobs = last.outputs[0].logprobs
    assert logprobs is not None
    text = smollm2.token_text
    assert logprobs[0] == {B: Logprob(-2.0, 1, text(B)), A: Logprob(-3.0, 2, text(A))}
    assert logprobs[1] == {C: Logprob(-4.0, 9, text(C)), B: Logprob(-0.1, 1, text(B)), A: Logprob(-0.2, 2, text(A))}
    assert last.outputs[0].cumulative_logprob == pytest.approx(-6.0)


def test_an_earlier_cumulative_output_keeps_its_text() -> None:
    first, _ = outputs(None, RequestOutputKind.CUMULATIVE, updates())
    assert (first.outputs[0].text, first.outputs[0].finish_reason, first.finished) == ("a", None, False)
