from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.frontend.generation import Generation, SampleUpdate
from quire.engine.messages import Delta, TokenLogprobs
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer
from tests.engine.conftest import SMOLLM2_TEXT

EOS = 2


def logprob_of(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(-float(token_id), 1, [], [])


def run(tokenizer: Tokenizer | None, ids: list[int], *, end: str = "length", stop_token_id: int = -1,
        cuts: list[int] | None = None, **params: Any) -> tuple[Generation, list[SampleUpdate]]:
    """One sample fed with `ids`, a token at a time or in runs of the given lengths; the last delta ends it."""
    generation = Generation(SamplingParams(max_tokens=None, **params), [1], tokenizer, 1)
    runs, rest = [], ids
    for cut in cuts or [1] * len(ids):
        runs.append(rest[:cut])
        rest = rest[cut:]
    runs.append(rest)
    updates = []
    for i, some in enumerate(runs):
        last = i == len(runs) - 1
        delta = Delta(0, some, end if last else "", stop_token_id if last else -1, [logprob_of(t) for t in some], 7)
        update = generation.push(0, delta)
        if update is not None:
            updates.append(update)
    return generation, updates


def text_of(updates: list[SampleUpdate]) -> str:
    return "".join(update.text for update in updates)


def ids_of(updates: list[SampleUpdate]) -> list[int]:
    return [i for update in updates for i in update.token_ids]


CUTS = st.lists(st.integers(0, 6), max_size=6)
KINDS = st.sampled_from(RequestOutputKind)


@given(text=SMOLLM2_TEXT, cuts=CUTS, kind=KINDS)
def test_updates_add_up_to_text_ids_and_logprobs(smollm2: Tokenizer, text: str, cuts: list[int],
                                                 kind: RequestOutputKind) -> None:
    ids = smollm2.encode(text)
    generation, updates = run(smollm2, ids, cuts=cuts, output_kind=kind, skip_special_tokens=False)
    assert text_of(updates) == text
    assert ids_of(updates) == generation.token_ids(0) == ids
    assert [p for update in updates for p in update.logprobs] == [logprob_of(i) for i in ids]
    assert [update.finish_reason for update in updates] == [None] * (len(updates) - 1) + ["length"]
    assert [update.num_cached_tokens for update in updates] == [7] + [None] * (len(updates) - 1)
    assert generation.finished
    if kind is RequestOutputKind.FINAL_ONLY:
        assert len(updates) == 1


@given(text=SMOLLM2_TEXT, cuts=CUTS, kind=KINDS, include=st.booleans(),
       stops=st.lists(st.text(st.sampled_from("ab \n"), min_size=1, max_size=3), min_size=1, max_size=3),
       between=st.text(st.sampled_from("ab \n"), max_size=4))
def test_a_stop_string_ends_text_and_tokens(smollm2: Tokenizer, text: str, cuts: list[int], kind: RequestOutputKind,
                                            include: bool, stops: list[str], between: str) -> None:
    text = text + between + text
    ids = smollm2.encode(text)
    generation, updates = run(smollm2, ids, cuts=cuts, output_kind=kind, stop=stops, skip_special_tokens=False,
                              include_stop_str_in_output=include)
    last = updates[-1]
    produced = generation.token_ids(0)
    assert ids_of(updates) == produced == ids[:len(produced)]
    if last.finish_reason == "length":
        assert not any(stop in text for stop in stops)
        assert text_of(updates) == text
        return
    assert (last.finish_reason, last.stop_reason in stops) == ("stop", True)
    shown = text_of(updates) + ("" if include else str(last.stop_reason))
    assert text.startswith(shown)
    assert not any(stop in shown[:-1] for stop in stops)
    # The last token is needed for the stop string, the one before was not enough.
    assert str(last.stop_reason) in smollm2.decode(produced, False)
    assert not any(stop in smollm2.decode(produced[:-1], False) for stop in stops)


def test_a_stop_string_ends_the_sample_before_the_engine_does(smollm2: Tokenizer) -> None:
    generation = Generation(SamplingParams(stop="world"), [1], smollm2, 1)
    update = generation.push(0, Delta(0, smollm2.encode("Hello world and more")))
    assert update is not None
    assert (update.text, update.finish_reason, update.stop_reason) == ("Hello ", "stop", "world")
    assert update.token_ids == smollm2.encode("Hello world")
    assert generation.sample_finished(0)
    assert generation.push(0, Delta(0, [5], "length")) is None


def test_min_tokens_holds_stop_strings_off(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("one two one two")
    assert len(ids) == 4
    _, updates = run(smollm2, ids, stop="one", min_tokens=2)
    assert text_of(updates) == "one two "


def test_eos_is_in_the_ids_and_not_in_the_text(smollm2: Tokenizer) -> None:
    ids = [*smollm2.encode("Hi"), EOS]
    for kind in RequestOutputKind:
        _, updates = run(smollm2, ids, cuts=[1], end="stop", stop_token_id=EOS, output_kind=kind,
                         skip_special_tokens=False)
        assert text_of(updates) == "Hi"
        assert ids_of(updates) == ids
        assert (updates[-1].finish_reason, updates[-1].stop_reason) == ("stop", None)


def test_a_stop_token_of_the_callers_is_the_reason(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("Hello world")
    for include, text in ((False, "Hello"), (True, "Hello world")):
        _, updates = run(smollm2, ids, cuts=[1], end="stop", stop_token_id=ids[-1], stop_token_ids=[ids[-1]],
                         include_stop_str_in_output=include)
        assert text_of(updates) == text
        assert (updates[-1].finish_reason, updates[-1].stop_reason) == ("stop", ids[-1])


def test_an_abort_shows_what_was_held_back(smollm2: Tokenizer) -> None:
    _, updates = run(smollm2, smollm2.encode("a STO"), end="abort", stop="STOP")
    assert (text_of(updates), updates[-1].finish_reason) == ("a STO", "abort")


def test_tokens_without_text_are_kept_for_a_resubmission(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("🎉")
    generation = Generation(SamplingParams(), [1], smollm2, 2)
    assert generation.push(1, Delta(0, ids[:1])) is None
    assert generation.token_ids(1) == ids[:1]
    update = generation.push(1, Delta(0, ids[1:]))
    assert update == SampleUpdate(1, "🎉", ids, [])
    assert generation.token_ids(0) == []


def test_without_a_tokenizer_there_are_ids_only() -> None:
    _, updates = run(None, [3, 4, 5])
    assert [(update.text, update.token_ids) for update in updates] == [("", [3]), ("", [4]), ("", [5]), ("", [])]
    _, updates = run(None, [3, 4, 5], output_kind=RequestOutputKind.FINAL_ONLY)
    assert [update.token_ids for update in updates] == [[3, 4, 5]]


def test_a_request_is_finished_when_all_samples_are(smollm2: Tokenizer) -> None:
    generation = Generation(SamplingParams(n=2), [1], smollm2, 2)
    generation.push(0, Delta(0, [5], "length"))
    assert (generation.sample_finished(0), generation.finished) == (True, False)
    generation.push(1, Delta(0, [5], "length"))
    assert generation.finished


def test_cached_tokens_are_told_once(smollm2: Tokenizer) -> None:
    generation = Generation(SamplingParams(), [1], smollm2, 1)
    ids = smollm2.encode("one two three")
    told = [generation.push(0, Delta(0, [i], num_cached_tokens=n)) for i, n in zip(ids, (16, -1, 32))]
    assert [update.num_cached_tokens for update in told if update] == [16, None, None]
