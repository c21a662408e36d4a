"""SamplingParams take what vLLM's take, and refuse the rest: which field, what was given, what is wanted."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from quire import SamplingParams
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.submission import numbers

NO_NUMBERS = ["hot", None, [1], {"a": 1}, b"x", object, True, 1j]
NEVER_NONE = ("n", "top_k", "min_tokens")
OR_NONE = ("seed", "max_tokens", "logprobs", "prompt_logprobs")
FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
FLAGS = ("ignore_eos", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
         "include_stop_str_in_output")

# vLLM's own defaults of what Quire does not implement, today's and those of versions that programs were written for.
DEFAULTS: dict[str, Any] = {
    "prompt_logprob_token_ids": None, "prompt_logprob_start": None, "logprob_token_ids": None,
    "flat_logprobs": False, "stream_interval": None, "skip_clone": False, "structured_outputs": None,
    "extra_args": None,
    "skip_reading_prefix_cache": None, "thinking_token_budget": None, "repetition_detection": None,
    "routed_experts_prompt_start": 0, "trace_decode_token_ids": None, "best_of": None, "use_beam_search": False,
    "length_penalty": 1.0, "early_stopping": False, "guided_decoding": None, "logits_processors": None,
    "truncate_prompt_tokens": None,
}
SAME_AS_DEFAULT = [("best_of", 1), ("logits_processors", []), ("extra_args", {}),
                   ("length_penalty", 1), ("stream_interval", 1), ("thinking_token_budget", -1)]
ASKING = [("extra_args", {"a": 1}),
          ("flat_logprobs", True),
          ("logits_processors", [print]), ("truncate_prompt_tokens", 5)]
# Of a beam search that is not asked for, or asked for with what cannot be had with it.
BEAM_SEARCH = {"use_beam_search": True, "temperature": 0}
BEAMS: list[tuple[str, dict[str, Any], str]] = [
    ("best_of", {"best_of": 2}, "is the number of beams of a beam search"),
    ("best_of", {"best_of": True}, "must be an integer"), ("best_of", {"n": 3, "best_of": 2}, "at least n, which is 3"),
    ("length_penalty", {"length_penalty": 0.5}, "needs use_beam_search=True"),
    ("early_stopping", {"early_stopping": "never"}, "needs use_beam_search=True"),
    ("length_counts_prompt", {"length_counts_prompt": True}, "needs use_beam_search=True"),
    ("early_stopping", {**BEAM_SEARCH, "early_stopping": "soon"}, 'must be True, False or "never"'),
    ("length_penalty", {**BEAM_SEARCH, "length_penalty": 11}, "must be in"),
    ("temperature", {"use_beam_search": True}, "must be 0 with use_beam_search"),
    ("stop", {**BEAM_SEARCH, "stop": "x"}, "not supported with use_beam_search"),
    ("repetition_penalty", {**BEAM_SEARCH, "repetition_penalty": 1.1}, "not supported with use_beam_search"),
    ("logit_bias", {**BEAM_SEARCH, "logit_bias": {1: 1}}, "not supported with use_beam_search"),
    ("allowed_token_ids", {**BEAM_SEARCH, "allowed_token_ids": [1]}, "not supported with use_beam_search"),
    ("bad_words", {**BEAM_SEARCH, "bad_words": ["x"]}, "not supported with use_beam_search"),
    ("structured_outputs", {**BEAM_SEARCH, "structured_outputs": {"regex": "a"}}, "not supported with use_beam_search"),
]


@pytest.mark.parametrize(("name", "given", "said"), BEAMS)
def test_a_beam_search_is_asked_for_as_a_whole(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**given)
    assert caught.value.param == name
    assert caught.value.message.startswith(name)
    assert said in caught.value.message


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_beam_search_has_as_many_beams_as_best_of_says(early_stopping: bool | str) -> None:
    params = SamplingParams(**BEAM_SEARCH, n=2, best_of=4, length_penalty=-1, early_stopping=early_stopping)
    assert (params.best_of, params.n, params.early_stopping) == (4, 2, early_stopping)


def refused(name: str, value: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert caught.value.message.startswith(name)
    return caught.value.message


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", [*FLOATS, *NEVER_NONE, *OR_NONE])
def test_what_is_no_number_is_refused_as_that(name: str, value: Any) -> None:
    if name in OR_NONE and value is None:
        SamplingParams(**{name: None})
    else:
        wanted = "a number" if name in FLOATS else "an integer"
        assert refused(name, value) == f"{name} must be {wanted}, got {value!r}."


def test_numbers_of_numpy_become_pythons_which_other_processes_can_read() -> None:
    given = {"temperature": np.linspace(0, 1, 3)[1], "top_p": np.float32(0.5), "min_p": np.int64(0),
             "repetition_penalty": np.float16(2), "n": np.int32(2), "top_k": np.uint8(5), "seed": np.int64(-1),
             "max_tokens": np.int64(7), "min_tokens": np.int16(3), "logprobs": np.int64(0)}
    params = SamplingParams(**given, stop_token_ids=np.array([4, 4, 2]))  # type: ignore[arg-type]
    assert [type(getattr(params, name)) for name in given if name != "seed"] == [float, float, int, float] + [int] * 5
    assert all(getattr(params, name) == value for name, value in given.items() if name != "seed")
    assert params.seed is None and params.stop_token_ids == [4, 2] and type(params.stop_token_ids[0]) is int
    for value in (np.nan, np.float32("inf")):
        assert refused("temperature", value) == f"temperature must be a finite number, got {value}."
    assert refused("n", np.float64(2)) == "n must be an integer, got np.float64(2.0)."


@pytest.mark.parametrize("value", [5, 0, True, 1.5, b"x", object, {"a": 1}])
def test_stops_are_texts(value: Any) -> None:
    assert refused("stop", value) == f"stop must be a string or a list of strings, got {value!r}."
    assert refused("stop", [value]) == f"stop must contain only strings, got {value!r}."


@pytest.mark.parametrize("value", [5, 0, "hot", 1.5, b"x", {1: 2}])
def test_stop_token_ids_are_a_list(value: Any) -> None:
    assert refused("stop_token_ids", value) == f"stop_token_ids must be a list of integers, got {value!r}."


@pytest.mark.parametrize("value", ["hot", [1], 1.5, None, True])
def test_stop_token_ids_hold_integers(value: Any) -> None:
    assert refused("stop_token_ids", [1, value]) == f"stop_token_ids must contain only integers, got {value!r}."


def test_stops_come_in_any_collection() -> None:
    params = SamplingParams(stop=("a", "b"), stop_token_ids=(id for id in (3, 3, 4)))  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (["a", "b"], [3, 4])
    assert SamplingParams(stop="a").stop == ["a"]
    assert SamplingParams(stop=None, stop_token_ids=None).stop == []


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name: str) -> None:
    for value in (True, False, 1, 0):
        SamplingParams(**{name: value})
    for given in ("false", None, 2, [True], 1.0):
        assert refused(name, given) == f"{name} must be True or False, got {given!r}."


@pytest.mark.parametrize("value", ["DELTA", 1, None])
def test_an_output_kind_is_one_of_them(value: Any) -> None:
    assert "RequestOutputKind" in refused("output_kind", value)


def test_a_long_value_is_quoted_in_part() -> None:
    assert len(refused("stop", {"x" * 10_000: 1})) < 200


def test_programs_that_pass_defaults_run() -> None:
    assert SamplingParams(temperature=0.5, **DEFAULTS) == SamplingParams(temperature=0.5)
    assert {name: getattr(SamplingParams(), name) for name in DEFAULTS} == DEFAULTS
    for name, value in SAME_AS_DEFAULT:
        SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), ASKING)
def test_what_is_not_implemented_is_refused_by_name(name: str, value: Any) -> None:
    assert refused(name, value).startswith(f"{name} is not supported by this version; leave it out")


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="best_off"):
        SamplingParams(best_off=None)  # type: ignore[call-arg]


def test_tokens_asked_for_and_against_become_pythons_own() -> None:
    params = SamplingParams(logit_bias={"5": 1, np.int64(7): np.float32(-200.0)}, bad_words=("a", "b"),
                            allowed_token_ids=np.array([3, 1, 3]))
    assert params.logit_bias == {5: 1.0, 7: -100.0}
    assert all(type(key) is int and type(value) is float for key, value in params.logit_bias.items())
    assert (params.allowed_token_ids, params.bad_words) == ([3, 1], ["a", "b"])
    assert all(type(token) is int for token in params.allowed_token_ids)
    nothing = SamplingParams(logit_bias={}, bad_words=[])
    assert (nothing.logit_bias, nothing.bad_words, nothing.allowed_token_ids) == (None, [], None)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("logit_bias", [1], "logit_bias must be a dictionary, got [1]."),
    ("logit_bias", {"x": 1},
     "logit_bias has the key 'x', which is no token id (/tokenize and LLM.get_tokenizer() tell those of a text)."),
    ("logit_bias", {1.5: 1},
     "logit_bias has the key 1.5, which is no token id (/tokenize and LLM.get_tokenizer() tell those of a text)."),
    ("logit_bias", {1: float("nan")}, "logit_bias must be a finite number, got nan."),
    ("logit_bias", {1: "much"}, "logit_bias must be a number, got 'much'."),
    ("allowed_token_ids", [],
     "allowed_token_ids is empty, so that no token could be drawn; leave it out to allow all."),
    ("allowed_token_ids", ["a"], "allowed_token_ids must contain only integers, got 'a'."),
    ("allowed_token_ids", 5, "allowed_token_ids must be a list of integers, got 5."),
    ("bad_words", "word", "bad_words must be a list of strings, got 'word'."),
    ("bad_words", [""], "bad_words cannot contain an empty string."),
    ("bad_words", [1], "bad_words must contain only strings, got 1."),
])
def test_what_asks_for_no_tokens_is_refused(name: str, value: Any, said: str) -> None:
    assert refused(name, value) == said


ANY = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5),
                   lambda inner: st.lists(inner, max_size=3)
                   | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=2), max_leaves=4)
LIKELY: dict[str, Any] = {
    **{name: st.floats(0, 2) for name in FLOATS}, **{name: st.booleans() for name in FLAGS}, "n": st.integers(1, 4),
    "top_k": st.integers(-1, 60), "seed": st.integers(), "max_tokens": st.integers(0, 400),
    "min_tokens": st.integers(0, 9), "bad_words": st.lists(st.text(max_size=3), max_size=2),
    "logprobs": st.integers(-1, 30), "stop": st.lists(st.text(max_size=3), max_size=3),
    "stop_token_ids": st.lists(st.integers(-2, 120), max_size=3),
    "logit_bias": st.dictionaries(st.integers(-2, 120), st.floats(), max_size=3),
    "allowed_token_ids": st.lists(st.integers(-2, 120), max_size=3)}
FIELDS = [field.name for field in dataclasses.fields(SamplingParams)]


@settings(max_examples=300, deadline=None)
@for_all(st.fixed_dictionaries({}, optional={name: LIKELY.get(name, st.nothing()) | ANY for name in FIELDS})
       | st.fixed_dictionaries({}, optional=LIKELY))
def test_whatever_is_given_is_refused_by_its_name_or_reaches_the_engine_whole(given_fields: dict[str, Any]) -> None:
    refused: InvalidRequestError | None = None
    try:
        params = SamplingParams(**given_fields)
        sampling = numbers(params, 40, max_model_len=256, max_logprobs=20, vocab_size=100, eos_token_ids=(2,),
                           clamp=True)
    except InvalidRequestError as error:
        refused = error
    if refused is not None:
        assert refused.param in given_fields
        assert refused.message.isprintable(), "it becomes a line of a log"
        return
    assert sampling.max_tokens >= 1
    sent = msgspec.msgpack.encode(sampling)
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(sent, type=type(sampling))) == sent
