from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire.engine.errors import ConfigError
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.engine.conftest import model_at
from tests.engine.tokenizers.byte_vocabulary import TEXTS, trained

END = "<|endoftext|>"


def save(path: Path, **config: Any) -> Path:
    vocabulary = trained().get_vocab()
    (path / "vocab.json").write_text(json.dumps({**vocabulary, END: len(vocabulary)}))
    merges = json.loads(trained().to_str())["model"]["merges"]
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("config", [
    {"tokenizer_class": "GPT2Tokenizer"},
    {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
    {"tokenizer_class": "GPT2TokenizerFast", "bos_token": "<b>", "add_bos_token": True, "added_tokens_decoder": {
        "421": {"content": "<b>", "special": True}, "422": {"content": "  the", "lstrip": False, "normalized": False}}},
    {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": ["<s>"], "added_tokens_decoder": {
        "421": {"content": "<s>", "special": True}, "422": {"content": "[INST]", "special": False}}},
], ids=["gpt2", "prefixed", "bos", "qwen2"])
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, eos_token=END, unk_token=END, pad_token=END, **config)
    ours, theirs = load_tokenizer(model_at(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, f"a{END} b", "x<b>  the<b>"]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.special_ids == frozenset(theirs.all_special_ids)


def test_the_models_type_tells_where_no_class_is_named(tmp_path: Path) -> None:
    def of(model_type: str) -> Tokenizer:
        return load_tokenizer(model_at(tmp_path, hf={"model_type": model_type}, eos_token_ids=(420,)))

    save(tmp_path)
    text = "don't 1234!\n\ne\u0301"
    (tmp_path / "gpt2").mkdir()
    assert of("gpt2").encode(text) == load_tokenizer(model_at(save(tmp_path / "gpt2", tokenizer_class="GPT2Tokenizer"))
                                                     ).encode(text)
    assert of("qwen2").encode(text) != of("gpt2").encode(text)
    assert of("qwen2").encode(f"a{END}")[-1] == 420
    assert of("qwen2").special_tokens == {"eos_token": END, "pad_token": END}


@pytest.mark.parametrize(("file", "content", "message"), [
    ("vocab.json", "{", "cannot be read"), ("vocab.json", "[]", "must hold a JSON object"),
    ("vocab.json", '{"a": "b"}', "must hold a JSON object"),
    ("vocab.json", '{"a": 1, "b": 0, "c": 1}', "'a' and 'c' have the same id, 1"),
    ("vocab.json", '{"a": 5000000000}', "must hold a JSON object"),
    ("vocab.json", '{"a": 0}', "cannot be read: .*out of vocabulary"),
    ("merges.txt", "a b c\n", "line 1 is 'a b c'"), ("merges.txt", "#version\nab\n", "line 2 is 'ab'"),
])
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, file: str, content: str, message: str) -> None:
    save(tmp_path, tokenizer_class="Qwen2Tokenizer")
    (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/(vocab.json|{file}):? .*{message}"):
        load_tokenizer(model_at(tmp_path))


def test_a_class_that_is_not_known_here_is_for_transformers(tmp_path: Path) -> None:
    save(tmp_path, tokenizer_class="NoSuchTokenizer", auto_map={"AutoTokenizer": ["mine.NoSuchTokenizer", None]})
    with pytest.raises(ConfigError, match=r"(?s)could not be converted.*--tokenizer DIR"):
        load_tokenizer(model_at(tmp_path))
