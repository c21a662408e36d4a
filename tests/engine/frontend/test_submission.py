"""A prompt that is seen to be too long is refused without tokenizing it, and only then."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as RustTokenizer

from quire.engine.config import EngineArgs
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.submission import check_length, numbers
from quire.engine.model_config import ModelConfig
from quire.engine.sampling_params import SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer, end_token_ids, load_tokenizer
from quire.engine.weights.locate import resolve_model
from tests.engine.conftest import model_at

PARAMS = SamplingParams(max_tokens=5)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    model: ModelConfig = resolve_model(EngineArgs())
    return load_tokenizer(model)


@given(times=st.integers(1, 40), text=st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc"]), max_size=50))
def test_a_text_never_has_fewer_tokens_than_said(smollm2: Tokenizer, text: str, times: int) -> None:
    assert smollm2.fewest_tokens(text * times) <= len(smollm2.encode(text * times))


def test_a_long_text_is_refused_untokenized(smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "encode_batch", None)
    for prompt in ("x" * 10**6, {"prompt": "x" * 10**6}):
        with pytest.raises(InvalidRequestError, match=r"maximum context length is 8192 .* at least 12346 input tokens"):
            check_length(prompt, 5, smollm2, 8192)  # type: ignore[arg-type]
    check_length("x" * 8192 * 60, 5, smollm2, 8192)
    check_length("x" * 10**6, 5, None, 8192)


@pytest.mark.parametrize("prompt", [[5] * 100, {"prompt_token_ids": [5] * 100}])
def test_ids_are_counted_before_they_are_looked_at(prompt: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match="contains 100 input tokens"):
        check_length(prompt, 5, None, 100)
    check_length(prompt, 5, None, 101)
    check_length(prompt, 0, None, 100)  # nothing is to follow it
    with pytest.raises(InvalidRequestError, match="contains 100 tokens"):
        check_length(prompt, 0, None, 99)


@pytest.mark.parametrize("clamp", [False, True])
def test_more_tokens_than_fit_are_refused_also_where_they_are_the_fewest_wanted(clamp: bool) -> None:
    limits: dict[str, Any] = {"max_model_len": 100, "max_logprobs": 5, "vocab_size": 50, "eos_token_ids": [],
                              "clamp": clamp}
    for num_prompt, fits in ((90, True), (91, False)):
        params = SamplingParams(max_tokens=None, min_tokens=10)
        if fits:
            assert numbers(params, num_prompt, **limits).min_tokens == 10
            continue
        with pytest.raises(InvalidRequestError, match=r"maximum context length is 100 .* requested 10 output .* prompt "
                                                      r"or min_tokens") as caught:
            numbers(params, num_prompt, **limits)
        assert caught.value.param == "min_tokens"


def test_what_may_drop_text_is_not_reckoned_with() -> None:
    def build(normalizer: normalizers.Normalizer | None, strips: bool = False) -> Tokenizer:
        rust = RustTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
        rust.decoder = decoders.ByteLevel()
        if normalizer is not None:
            rust.normalizer = normalizer
        rust.add_special_tokens([AddedToken("<mask>", lstrip=strips)])
        return Tokenizer(rust, special_tokens={})

    assert build(None).fewest_tokens("x" * 60) == 10  # "<mask>" is the longest
    assert build(normalizers.NFC()).fewest_tokens("x" * 60) == 3
    assert build(normalizers.Strip()).fewest_tokens("x" * 60) == 0
    assert build(None, strips=True).fewest_tokens("x" * 60) == 0


def test_generation_ends_where_model_or_tokenizer_says(smollm2: Tokenizer) -> None:
    assert end_token_ids(model_at("m", eos_token_ids=(0, 7)), smollm2) == (0, 7, 2)
    assert end_token_ids(model_at("m", eos_token_ids=(0,)), None) == (0,)
