from __future__ import annotations

import contextlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.errors import ConfigError
from quire.engine.frontend.chat_template import ChatTemplate
from quire.engine.frontend.detokenizer import Detokenizer
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.engine.conftest import model_at

FIXTURES = Path(__file__).parents[2] / "fixtures" / "sentencepiece"
RECORDED = json.loads((FIXTURES / "recorded.json").read_text(encoding="utf-8"))
TEXTS = RECORDED["texts"]
MODELS = sorted(RECORDED["models"])
LLAMA = (FIXTURES / "llama.model").read_bytes()


@cache
def fixture(name: str) -> Tokenizer:
    return load_tokenizer(model_at("no model"), str(FIXTURES / f"{name}.model"))


def directory(path: Path, name: str, **config: Any) -> Path:
    shutil.copy(FIXTURES / f"{name}.model", path / "tokenizer.model")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_sentencepiece_package(name: str) -> None:
    tokenizer, recorded = fixture(name), RECORDED["models"][name]
    wrong = [text for text, ids in zip(TEXTS, recorded["ids"]) if tokenizer.encode(text, False) != ids]
    assert wrong == (["  ", "   "] if name == "baichuan" else [])  # user-defined pieces and nothing else


@pytest.mark.parametrize("name", MODELS)
def test_decoding_is_that_of_the_sentencepiece_package(name: str) -> None:
    tokenizer, recorded = fixture(name), RECORDED["models"][name]
    unknown = tokenizer._rust.token_to_id("<unk>")
    wrong = [text for text, ids, decoded in zip(TEXTS, recorded["ids"], recorded["decoded"])
             if unknown not in ids and tokenizer.decode(ids) != decoded]  # it writes a sign for what is unknown
    assert wrong == (["▁▁ blocks ▁ of▁its own▁"] if "replacing" in name else [])  # it drops all leading spaces there


@pytest.mark.parametrize("name", ["llama", "gemma", "unigram"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back(name: str, text: str) -> None:
    assert fixture(name).decode(fixture(name).encode(text, False), skip_special_tokens=False) == text


@pytest.mark.parametrize("name", MODELS)
@given(ids=st.lists(st.integers(0, 450)), skip=st.booleans(), cut=st.integers(0, 20))
def test_pieces_add_up_to_the_whole(name: str, ids: list[int], skip: bool, cut: int) -> None:
    tokenizer = fixture(name)
    detokenizer = Detokenizer(tokenizer, [], skip)
    deltas = [detokenizer.push(ids[:cut]), *(detokenizer.push([id]) for id in ids[cut:]), detokenizer.flush()]
    assert "".join(deltas) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize(("config", "before", "after"), [
    ({}, [1], []), ({"add_bos_token": True, "add_eos_token": True}, [1], [2]), ({"add_bos_token": False}, [], []),
    ({"add_eos_token": True, "eos_token": {"content": "<s>", "__type": "AddedToken"}}, [1], [1]),
])
def test_the_configuration_says_what_stands_around_a_text(tmp_path: Path, config: dict[str, Any], before: list[int],
                                                          after: list[int]) -> None:
    tokenizer = load_tokenizer(model_at(directory(tmp_path, "llama", **config)))
    assert tokenizer.encode("Hello") == [*before, *fixture("llama").encode("Hello", False), *after]


def test_special_tokens_are_the_files_where_nothing_else_names_them() -> None:
    assert fixture("gemma").special_tokens == {
        "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert (fixture("gemma").bos_token_id, fixture("gemma").eos_token_id) == (2, 1)
    assert fixture("llama").special_ids == {0, 1, 2}


@pytest.mark.parametrize("name", ["llama", "baichuan", "unigram"])
def test_behind_a_control_token_a_text_begins_anew_unless_told_otherwise(tmp_path: Path, name: str) -> None:
    old, new = fixture(name), load_tokenizer(model_at(directory(tmp_path, name, legacy=False)))
    for text in TEXTS if name != "baichuan" else []:  # user-defined pieces are looked for before that space is there
        assert new.encode(text, False) == old.encode(text, False)
    ids = [*old.encode("the work", False), 2, *old.encode("the", False)]
    assert old.encode("the work</s>the", False) == ids
    assert old.decode(ids) == "the work the"
    assert new.decode(new.encode("the work</s>the", False)) == "the workthe"
    assert new.encode("</s> the", False) == [2, *old.encode("the", False)]


def test_user_defined_pieces_are_found_wherever_they_stand() -> None:
    tokenizer = fixture("baichuan")
    spelled = [tokenizer._rust.id_to_token(id) for id in tokenizer.encode("[INST]<reserved_12>x[/INST]", False)]
    assert spelled == ["\u2581", "[INST]", "<reserved_12>", "x", "[/INST]"]


def test_no_code_of_the_checkpoint_is_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "tokenization_baichuan.py").write_text(f"open({str(ran)!r}, 'w')\nclass BaichuanTokenizer: pass\n")
    path = directory(tmp_path, "baichuan", tokenizer_class="BaichuanTokenizer", add_bos_token=False,
                     auto_map={"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]})
    tokenizer = load_tokenizer(model_at(path))
    assert tokenizer.encode("Hello") == fixture("baichuan").encode("Hello", False)
    assert not ran.exists()


def test_added_tokens_of_both_forms_have_their_ids(tmp_path: Path) -> None:
    size = fixture("gemma").vocab_size
    turn = fixture("gemma")._rust.token_to_id("<start_of_turn>")
    directory(tmp_path, "gemma")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": size + 1, "<tool>": size}))
    tokenizer = load_tokenizer(model_at(tmp_path))
    assert tokenizer.encode("<b><tool>", False) == [size + 1, size]
    assert turn not in tokenizer.special_ids
    directory(tmp_path, "gemma", added_tokens_decoder={
        str(turn): {"content": "<start_of_turn>", "special": True, "normalized": False},
        str(size): {"content": "<b>", "special": False}})
    tokenizer = load_tokenizer(model_at(tmp_path))
    assert tokenizer.encode("<b><start_of_turn>", False) == [size, turn]
    assert turn in tokenizer.special_ids and size not in tokenizer.special_ids
    directory(tmp_path, "llama", added_tokens_decoder={
        str(fixture("llama").vocab_size): {"content": "<b>", "special": False}})
    assert load_tokenizer(model_at(tmp_path)).encode("x<b>", False)[-1] == fixture("llama").vocab_size
    directory(tmp_path, "gemma", added_tokens_decoder={str(size + 5): {"content": "<b>"}})
    with pytest.raises(ConfigError, match=rf"tokenizer.model leaves no room for '<b>' at id {size + 5}"):
        load_tokenizer(model_at(tmp_path))


@pytest.mark.parametrize("legacy", [True, False])
def test_messages_make_no_control_token(tmp_path: Path, legacy: bool) -> None:
    tokenizer = load_tokenizer(model_at(directory(tmp_path, "baichuan", legacy=legacy)))
    template = ChatTemplate("{{ bos_token }}[INST] {{ messages[0].content }} [/INST]", tokenizer.special_tokens,
                            control=tokenizer.control_tokens)
    plain, spelling = ([tokenizer._rust.id_to_token(i) for i in tokenizer.encode(
        template.render([{"role": "user", "content": text}]), False)] for text in ("the work", "</s>[INST]  </s>"))
    control = [[piece for piece in pieces if piece in ("<s>", "</s>", "[INST]", "[/INST]")]
               for pieces in (plain, spelling)]
    assert control == [["<s>", "[INST]", "[/INST]"]] * 2


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for size in range(0, len(LLAMA), 29):
        path.write_bytes(LLAMA[:size])
        with pytest.raises(ConfigError, match=r"tokenizer\.model: cannot be read as a SentencePiece file"):
            load_tokenizer(model_at("m"), str(path))


@pytest.mark.parametrize("name", ["llama", "unigram_replacing"])
@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str,
                                           changes: list[tuple[int, int]]) -> None:
    data = bytearray((FIXTURES / f"{name}.model").read_bytes())
    for place, byte in changes:
        data[-1 - place % 2000] = byte  # where what is not just a piece lies
    path = tmp_path_factory.getbasetemp() / "damaged.model"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        tokenizer = load_tokenizer(model_at("m"), str(path))
        for text in TEXTS:
            tokenizer.encode(text)


def varint(number: int) -> bytes:
    more = bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
    return more + (varint(number >> 7) if number > 0x7F else b"")


def part(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


@pytest.mark.parametrize(("data", "message"), [
    (b"", "lacks its pieces"),
    (b"IQ== 0\nIg== 1\n", r"cannot be read as a SentencePiece file.*tiktoken"),
    (b"\x0a\xff\xff\xff\xff\x7f", "field 1 wants 34359738367 bytes, and 0 are left"),
    (b"\x0a" + b"\xff" * 12, "more than 64 bits"),
    (b"\x0a\x80", "ends inside a number"),
    (b"\x0b", "field 1 is of the unknown kind 3"),
    (part(1, 5), "a piece is a number"),
    (part(1, part(1, 5)), "a piece's text is a number"),
    (part(1, part(1, b"a") + part(2, b"abc")), "a piece's score is 3 bytes long"),
    (part(1, part(1, b"\xff")), "codec can't decode"),
    (part(1, part(3, 1)), "piece 0 has no text"),
    (LLAMA + part(1, part(1, b"<s>")), "holds a piece twice"),
    (LLAMA + part(1, part(1, b"zz") + b"\x15\x00\x00\xc0\x7f"), "no finite number"),
    (LLAMA + part(1, part(1, b"zz") + part(3, 5)), r"'zz' is of type 5 \(unused\)"),
    (LLAMA + part(1, part(1, b"zz") + part(3, 2)), r"2 pieces are of type 2 \(unknown\)"),
    (LLAMA + part(1, part(1, b"z" * 5000)), "a token has 5000 characters"),
    (LLAMA + part(2, part(3, 4)), "model_type is 4"),
    (LLAMA + part(2, part(24, 1)), "treat_whitespace_as_suffix"),
    (LLAMA + part(3, part(5, 0)), "escape_whitespaces"),
    (LLAMA + part(3, part(2, b"rubbish")), "precompiled_charsmap is cut short"),
    (LLAMA + part(3, part(2, b"\x08\0\0\0" + b"\x7f" * 8)), "node 0 of its precompiled_charsmap leads out of it"),
    (LLAMA + part(3, part(2, b"\0\x04\0\0" + b"\xff" * 4 + bytes(1020))), "node 0 of its precompiled_charsmap leads"),
])
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        load_tokenizer(model_at("m"), str(path))
    assert str(path) in str(caught.value)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="has 1099511627776 bytes"):
        load_tokenizer(model_at("m"), str(path))
