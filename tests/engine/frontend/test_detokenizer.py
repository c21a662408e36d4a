from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from quire.engine.frontend.detokenizer import Detokenizer
from quire.engine.tokenizers.tokenizer import Tokenizer
from tests.engine.conftest import SMOLLM2_TEXT

FUNCTION_SCOPED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def pieces(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """The deltas for `ids` cut into runs of the given lengths, then one by one."""
    texts, rest = [], ids
    for cut in cuts:
        texts.append(detokenizer.push(rest[:cut]))
        rest = rest[cut:]
    return [*texts, *(detokenizer.push([i]) for i in rest), detokenizer.flush()]


@given(text=SMOLLM2_TEXT, cuts=st.lists(st.integers(0, 5), max_size=5))
def test_deltas_add_up_to_the_text(smollm2: Tokenizer, text: str, cuts: list[int]) -> None:
    deltas = pieces(Detokenizer(smollm2, [], skip_special_tokens=False), smollm2.encode(text), cuts)
    assert "".join(deltas) == text


@given(ids=st.lists(st.integers(0, 49151)), skip=st.booleans(), cuts=st.lists(st.integers(0, 5), max_size=5))
def test_deltas_of_any_ids_add_up_to_decode(smollm2: Tokenizer, ids: list[int], skip: bool, cuts: list[int]) -> None:
    assert "".join(pieces(Detokenizer(smollm2, [], skip), ids, cuts)) == smollm2.decode(ids, skip)


@FUNCTION_SCOPED
@given(ids=st.lists(st.integers(0, 274)), cuts=st.lists(st.integers(0, 5), max_size=5))
def test_sentencepiece_deltas_add_up_to_decode(sentencepiece: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    assert "".join(pieces(Detokenizer(sentencepiece, []), ids, cuts)) == sentencepiece.decode(ids)


def test_a_character_is_shown_only_when_whole(smollm2: Tokenizer) -> None:
    text = "🎉漢é"
    detokenizer = Detokenizer(smollm2, [])
    deltas = [detokenizer.push([i]) for i in smollm2.encode(text)]
    assert "".join(deltas) == text
    assert len([delta for delta in deltas if not delta]) > 0
    assert not any("\ufffd" in delta for delta in deltas)


def test_an_unfinished_character_is_flushed_as_replacement(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("🎉")
    detokenizer = Detokenizer(smollm2, [])
    assert detokenizer.push(ids[:1]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_a_continuation_keeps_the_space_before_its_first_word(sentencepiece: Tokenizer) -> None:
    prompt, word = sentencepiece.encode("hello"), sentencepiece.encode("a", False)
    assert Detokenizer(sentencepiece, prompt).push(word) == " a"
    assert Detokenizer(sentencepiece, [1]).push(word) == "a"  # after BOS alone it is the text's first word


@given(text=SMOLLM2_TEXT, cut=st.integers(0, 20))
def test_a_prompt_may_end_inside_a_character(smollm2: Tokenizer, text: str, cut: int) -> None:
    ids = smollm2.encode(text)
    detokenizer = Detokenizer(smollm2, ids[:cut], skip_special_tokens=False)
    continuation = detokenizer.push(ids[cut:]) + detokenizer.flush()
    assert text.endswith(continuation)
    assert smollm2.decode(ids[:cut], False).rstrip("\ufffd") + continuation in (text, text.replace("\ufffd", ""))


def test_special_tokens_are_shown_on_request(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("a<|im_end|>b")
    assert Detokenizer(smollm2, [], skip_special_tokens=True).push(ids) == "ab"
    assert Detokenizer(smollm2, [], skip_special_tokens=False).push(ids) == "a<|im_end|>b"


def whole_words() -> tuple[Tokenizer, RustTokenizer]:
    rust = RustTokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    rust.add_special_tokens(["<s>", "</s>"])
    rust.add_tokens(["<x>"])
    return Tokenizer(rust, special_tokens={}), rust


@given(ids=st.lists(st.integers(0, 5)), skip=st.booleans(), cuts=st.lists(st.integers(0, 5), max_size=5))
def test_words_are_spaced_as_the_reference_does(ids: list[int], skip: bool, cuts: list[int]) -> None:
    tokenizer, rust = whole_words()
    expected = rust.decode(ids, skip_special_tokens=skip)
    assert tokenizer.decode(ids, skip) == "".join(pieces(Detokenizer(tokenizer, [], skip), ids, cuts)) == expected


@pytest.mark.parametrize(("prompt", "skip", "spaces", "text"), [
    ([0], False, True, " <s> <s> a </s> <x> <x>"),
    ([0], False, False, " <s><s> a </s><x><x>"),
    ([3], False, False, "<s><s> a </s><x><x>"),  # the prompt's last token counts
    ([0], True, False, " a <x> <x>"),  # what is not shown needs no joining
])
def test_added_tokens_stand_together_where_no_space_is_wanted(prompt: list[int], skip: bool, spaces: bool,
                                                              text: str) -> None:
    tokenizer, _ = whole_words()
    ids = [3, 3, 0, 4, 5, 5]
    assert "".join(pieces(Detokenizer(tokenizer, prompt, skip, spaces), ids, [2])) == text
    assert Detokenizer(tokenizer, prompt, skip, spaces).push(ids) == text


def test_where_no_token_brings_a_space_none_is_taken_away(smollm2: Tokenizer, sentencepiece: Tokenizer) -> None:
    for tokenizer in (smollm2, sentencepiece):
        ids = [1, 1, 2, 1]
        texts = {Detokenizer(tokenizer, [5], False, spaces).push(ids) for spaces in (True, False)}
        assert len(texts) == 1
        assert " " not in texts.pop()
