from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.engine.errors import ConfigError
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import smollm2_file
from tests.engine.conftest import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, WORDS, model_at

CASES = json.loads((Path(__file__).parents[2] / "fixtures" / "smollm2-tokens.json").read_text(encoding="utf-8"))
ASCII = [(chr(code), 0.0, NORMAL) for code in range(0x21, 0x7F)]
ASCII.append(("ab", 0.0, NORMAL))
SPECIAL = [("<|end|>", 0.0, CONTROL)]


def test_smollm2_gives_the_recorded_ids(smollm2: Tokenizer) -> None:
    wrong = [case["text"] for case in CASES["cases"] if smollm2.encode(case["text"], False) != case["ids"]]
    assert wrong == []


def test_smollm2_texts_come_back(smollm2: Tokenizer) -> None:
    for case in CASES["cases"]:
        assert smollm2.decode(case["ids"], skip_special_tokens=False) == case["text"]


def test_smollm2_special_tokens_are_the_files(smollm2: Tokenizer) -> None:
    assert (smollm2.bos_token_id, smollm2.eos_token_id) == (CASES["bos"], CASES["eos"])
    assert smollm2.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert smollm2.encode("a<|im_end|>") == [*smollm2.encode("a"), 2]  # and no BOS: the file says so
    assert smollm2.vocab_size == 49152


def _sentencepiece_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """The definition: join the two neighbours whose joint token scores best, the leftmost first, until none is left."""
    parts = list("\u2581" + text.replace(" ", "\u2581")) if text else []
    while True:
        joints = [(WORDS[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in WORDS]
        if not joints:
            break
        i = -max(joints)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    first_word = 3 + 256
    ids = {word: first_word + i for i, word in enumerate(WORDS)}
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("helloa é漢"), max_size=30))
def test_sentencepiece_merges_by_score_with_byte_fallback(sentencepiece: Tokenizer, text: str) -> None:
    ids = sentencepiece.encode(text, add_special_tokens=False)
    assert ids == _sentencepiece_ids(text, sentencepiece)
    assert sentencepiece.decode(ids) == text


def test_bos_is_added_where_the_file_says_so(sentencepiece: Tokenizer) -> None:
    plain = sentencepiece.encode("hello", add_special_tokens=False)
    assert sentencepiece.encode("hello") == [1, *plain]


@pytest.mark.parametrize(("pre", "pieces"), [
    ("gpt-2", ["don", "'t", " 1234", " !?", "  ", " x"]),
    ("smollm", ["don", "'t", " ", "1", "2", "3", "4", " !?", "  ", " x"]),
    ("llama-bpe", ["don", "'t", " ", "123", "4", " !?", "  ", " x"]),
    ("qwen2", ["don", "'t", " ", "1", "2", "3", "4", " !?", "  ", " x"]),
    ("tekken", ["don", "'t", " ", "1", "2", "3", "4", " !?", "  ", " x"]),
    ("gpt-4o", ["don't", " ", "123", "4", " !?", "  ", " x"]),
    ("deepseek-v3", ["don", "'t", " ", "123", "4", " !?", "  ", " x"]),
    ("falcon", ["don", "'", "t", " ", "123", "4", " ", "!?", "  ", " x"]),
])
def test_each_pre_tokenizer_cuts_as_published(write_gguf: Callable[..., Path], pre: str, pieces: list[str]) -> None:
    """Every substring is a token here, so the ids show the cuts."""
    text = "don't 1234 !?   x"
    tokens = dict.fromkeys([*(text for text, _, _ in ASCII), "\u0120"])
    merges: dict[str, None] = {}
    for start in range(len(text)):
        spelled = text[start:].replace(" ", "\u0120")
        for end in range(2, len(spelled) + 1):
            tokens[spelled[:end]] = None
            merges[f"{spelled[:end - 1]} {spelled[end - 1]}"] = None
    path = write_gguf("gpt2", [*((t, 0.0, NORMAL) for t in tokens), *SPECIAL], tokenizer_pre=pre,
                      token_merges=list(merges), add_bos_token=False, bos_token_id=len(tokens))
    tokenizer = load_tokenizer(model_at(path))
    got = [tokenizer.token_text(i) for i in tokenizer.encode(text)]
    assert got == pieces


@pytest.mark.parametrize(("pre", "composes"), [("qwen2", True), ("command-r", True), ("smollm", False)])
def test_decomposed_accents_are_composed_where_the_original_does(write_gguf: Callable[..., Path], pre: str,
                                                                 composes: bool) -> None:
    composed, bare = "\u00c3\u00a9", "\u00cc\u0123"  # the bytes of U+00E9 and of U+0301, as byte-level BPE writes them
    tokens = [*ASCII, *((letter, 0.0, NORMAL) for letter in composed + bare)]
    path = write_gguf("gpt2", tokens, tokenizer_pre=pre, token_merges=["a b"])
    tokenizer = load_tokenizer(model_at(path))
    assert (tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")) is composes
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == ("\u00e9" if composes else "e\u0301")


def test_gemma_merges_by_score_without_a_space_in_front_and_takes_runs_of_spaces_whole(write_gguf: Callable[..., Path]
                                                                                       ) -> None:
    """Its files hold the runs with plain spaces, as tokens of the user's."""
    words = {**dict.fromkeys("aby\u2581", -9.0), "ab": -1.0, "by": -2.0, "\u2581a": -0.5, "\u2581\u2581": -7.0}
    rows = [("<unk>", 0.0, UNKNOWN), ("<bos>", -1000.0, CONTROL), ("<end_of_turn>", -1000.0, CONTROL),
            ("  ", -1000.0, USER_DEFINED), ("   ", -1000.0, USER_DEFINED),
            *((word, score, NORMAL) for word, score in words.items())]
    tokenizer = load_tokenizer(model_at(write_gguf("llama", rows, bos_token_id=1, unk_token_id=0,
                                                   tokenizer_pre="default", add_space_prefix=False)))
    for text, pieces in (("aby", ["ab", "y"]), ("by ab", ["by", "\u2581a", "b"]),
                         ("a   by  ab", ["a", "   ", "by", "  ", "ab"]),
                         ("ab<end_of_turn> a", ["ab", "<end_of_turn>", "\u2581a"])):
        ids = tokenizer.encode(text)
        assert [tokenizer._rust.id_to_token(id) for id in ids] == ["<bos>", *pieces]
        assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


def test_no_text_is_spelled_with_control_or_byte_tokens(write_gguf: Callable[..., Path]) -> None:
    rows = [("<unk>", 0.0, UNKNOWN), ("</s>", 0.0, CONTROL), ("<0x0A>", 0.0, BYTE), ("\u2581", -1.0, NORMAL),
            *((text, -2.0, NORMAL) for text in ("<", "/", "s", ">", "</", "s>", "0", "x", "A", "<0", "xA>", "0A", "0A>",
                                               "<0x", "x0A>"))]
    tokenizer = load_tokenizer(model_at(write_gguf("llama", rows, add_bos_token=False)))
    spelled = [tokenizer._rust.id_to_token(id) for id in tokenizer._separate_encoder._plain.encode("</s><0x0A>").ids]
    assert not {"</s>", "<0x0A>"} & set(spelled)


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_bos_defaults_by_pre_tokenizer(write_gguf: Callable[..., Path], pre: str, adds: bool) -> None:
    path = write_gguf("gpt2", [*ASCII, *SPECIAL], tokenizer_pre=pre, token_merges=["a b"], bos_token_id=len(ASCII))
    assert (load_tokenizer(model_at(path)).encode("ab")[0] == len(ASCII)) is adds


def test_an_unknown_pre_tokenizer_is_an_error_that_names_it(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf("gpt2", ASCII, tokenizer_pre="martian", token_merges=["a b"])
    with pytest.raises(ConfigError, match=r"'martian'.*--tokenizer"):
        load_tokenizer(model_at(path))


def test_a_missing_pre_tokenizer_is_an_error(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf("gpt2", ASCII, token_merges=["a b"])
    with pytest.raises(ConfigError, match=r"pre is None.*--tokenizer"):
        load_tokenizer(model_at(path))


def test_an_unknown_kind_of_vocabulary_is_an_error(write_gguf: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="'bert'"):
        load_tokenizer(model_at(write_gguf("bert", ASCII)))


def test_a_special_token_outside_the_vocabulary_is_an_error(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf("gpt2", ASCII, tokenizer_pre="gpt-2", token_merges=["a b"], eos_token_id=5000)
    with pytest.raises(ConfigError, match="eos_token_id is 5000"):
        load_tokenizer(model_at(path))


def test_a_file_may_hold_several_chat_templates(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf("gpt2", ASCII, tokenizer_pre="gpt-2", token_merges=["a b"],
                      chat_template=[{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}])
    assert load_tokenizer(model_at(path)).chat_templates == {"default": "A", "tool_use": "B"}


@pytest.mark.parametrize("merges", [["q r"], ["a b c"]])
def test_merges_of_what_is_no_token_are_an_error(write_gguf: Callable[..., Path], merges: list[str]) -> None:
    path = write_gguf("gpt2", ASCII, tokenizer_pre="gpt-2", token_merges=merges)
    with pytest.raises(ConfigError, match=rf"{path} cannot be read: .*out of vocabulary"):
        load_tokenizer(model_at(path))


def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"x\.gguf: .*'GGUF'|x\.gguf: wants"):
        load_tokenizer(model_at(smollm2_file()), str(tmp_path / "x.gguf"))


def test_a_token_of_endless_length_is_an_error(write_gguf: Callable[..., Path]) -> None:
    rows = [("<unk>", 0.0, UNKNOWN), ("a", -1.0, NORMAL), ("a" * 5000, -2.0, NORMAL)]
    with pytest.raises(ConfigError, match="a token has 5000 characters"):
        load_tokenizer(model_at(write_gguf("llama", rows)))
