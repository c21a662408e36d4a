from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.engine.errors import ConfigError
from quire.engine.frontend.detokenizer import Detokenizer
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.engine.conftest import model_at
from tests.engine.tokenizers.byte_vocabulary import TEXTS, by_definition, in_order

PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
           r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = 24


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def contents(**changes: Any) -> dict[str, Any]:
    tokens = in_order()
    vocab = [{"rank": i, "token_bytes": in_base64(token), "token_str": None}
             for i, token in enumerate([*tokens, b"the licensed work"])]  # more than are in use
    config = {"pattern": PATTERN, "num_vocab_tokens": len(vocab), "default_vocab_size": len(tokens) + SPECIAL,
              "default_num_special_tokens": SPECIAL, "version": "v3"}
    return {"config": config, "vocab": vocab, **changes}


def saved(path: Path, **changes: Any) -> Tokenizer:
    (path / "tekken.json").write_text(json.dumps(contents(**changes)))
    return load_tokenizer(model_at(path))


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return saved(tmp_path_factory.mktemp("tekken"))


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return [id - SPECIAL for id in tokenizer.encode(text, False)]


def test_ids_are_as_tiktoken_defines_them(tekken: Tokenizer) -> None:
    for text in TEXTS:
        if not text.startswith(("<s>", "[INST]")):
            assert plain(tekken, text) == by_definition(text, PATTERN), text
            assert tekken.decode(tekken.encode(text)) == text


@given(text=st.text(st.sampled_from("abtheTHE \n\u0301漢🎉1'-="), max_size=40))
def test_any_text_is(tekken: Tokenizer, text: str) -> None:
    assert plain(tekken, text) == by_definition(text, PATTERN)
    detokenizer = Detokenizer(tekken, [])
    assert "".join([*(detokenizer.push([id]) for id in tekken.encode(text)), detokenizer.flush()]) == text


def test_special_tokens_come_first_and_are_filled_up(tekken: Tokenizer) -> None:
    assert tekken.vocab_size == len(in_order()) + SPECIAL
    assert tekken.special_tokens == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
                                     "pad_token": "<pad>"}
    assert tekken.encode("[INST]a</s><SPECIAL_23>") == [1, 3, *tekken.encode("a", False), 2, 23]
    assert tekken.special_ids == frozenset(range(SPECIAL))
    assert tekken.decode([1, *tekken.encode("a", False), 2]) == "a"


def test_a_file_may_list_its_special_tokens(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, special_tokens=[
        {"rank": 0, "token_str": "<unk>", "is_control": True}, {"rank": 2, "token_str": "</s>", "is_control": True},
        {"rank": 5, "token_str": "[THINK]", "is_control": False}])
    assert tokenizer.encode("<SPECIAL_1></s>[THINK]") == [1, 2, 5]  # and nothing before: there is no <s>
    assert 5 not in tokenizer.special_ids and tokenizer.decode([1, 5, 2]) == "[THINK]"


@pytest.mark.parametrize(("change", "message"), [
    (lambda file: file.pop("vocab"), "KeyError: 'vocab'"),
    (lambda file: file.update(vocab=5), "TypeError"),
    (lambda file: file["config"].pop("pattern"), "'pattern'"),
    (lambda file: file["config"].update(pattern="("), "unmatched parenthesis"),
    (lambda file: file["config"].update(default_vocab_size=10**6), "tokens are said to be in use"),
    (lambda file: file["config"].update(default_num_special_tokens=0), "default_num_special_tokens is 0"),
    (lambda file: file["config"].update(default_num_special_tokens=2**23, default_vocab_size=2**23 + 300),
     "default_num_special_tokens is 8388608; it must be a number of tokens, 65536 at most"),
    (lambda file: file["config"].update(default_num_special_tokens=400), "of which 256 are bytes"),
    (lambda file: file["vocab"][7].update(rank=8), "the token in place 7 has rank 8"),
    (lambda file: file["vocab"][7].update(token_bytes="?"), "Error"),
    (lambda file: file["vocab"][300].update(token_bytes=file["vocab"][7]["token_bytes"]), "holds a token twice"),
    (lambda file: file["vocab"][300].update(token_bytes=""), "or an empty one"),
    (lambda file: file["vocab"][300].update(token_bytes=in_base64(b"<s>")), "'<s>' is a special token and"),
    (lambda file: file["vocab"][300].update(token_bytes=in_base64(b"a" * 9999)), "a token has 9999 characters"),
    (lambda file: file.update(special_tokens=[{"rank": 99, "token_str": "x", "is_control": True}]), "not below 24"),
    (lambda file: file.update(special_tokens=[{"rank": 0, "token_str": "<SPECIAL_3>", "is_control": True}]),
     "a special token twice"),
])
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, change: Callable[[dict[str, Any]], Any],
                                           message: str) -> None:
    file = contents()
    change(file)
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    with pytest.raises(ConfigError, match=rf"tekken\.json:? cannot be read.*({message})"):
        load_tokenizer(model_at(tmp_path))
