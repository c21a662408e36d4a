from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from quire.engine.errors import ConfigError, InvalidRequestError
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import smollm2_file
from tests.engine.conftest import SMOLLM2_TEXT, model_at
from tests.engine.tokenizers.test_sentencepiece_tokenizer import FIXTURES as SENTENCEPIECE
from tests.engine.tokenizers.test_tekken_tokenizer import contents as tekken_contents
from tests.engine.tokenizers.test_vocab_merges_tokenizer import save as save_vocab_merges

TEXTS = ["", "Hello world", " leading", "1234 567", "<|im_start|>user\nhi<|im_end|>\n",
         "naïve 漢字 🎉👨‍👩‍👧", "a\r\n\tb  "]
TOKENIZER = load_tokenizer(model_at(smollm2_file()))


def save(directory: Path, **config: Any) -> Path:
    """SmolLM2's tokenizer as a Hugging Face directory."""
    TOKENIZER._rust.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "bos_token": {"content": "<|im_start|>", "__type": "AddedToken"}, **config}))
    return directory


@pytest.mark.parametrize("config", [
    {},
    {"add_bos_token": True},
    {"add_bos_token": True, "add_eos_token": True},
    {"added_tokens_decoder": {"49152": {"content": "<tool>", "special": False, "normalized": False}}},
    {"model_max_length": 3},
])
def test_a_directory_tokenizes_as_transformers_does(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, **config)
    ours, theirs = load_tokenizer(model_at(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "a<tool>b"]:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, special) == ids
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


@given(SMOLLM2_TEXT)
def test_any_unicode_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=False) == text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)), st.booleans())
def test_any_ids_decode_as_the_reference_does(ids: list[int], skip: bool) -> None:
    assert TOKENIZER.decode(ids, skip) == TOKENIZER._rust.decode(ids, skip_special_tokens=skip)


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    assert TOKENIZER.decode([TOKENIZER.vocab_size, 10**9, -1]) == ""


def test_token_bytes_add_up_to_the_text() -> None:
    text = "漢字 and 🎉"
    ids = TOKENIZER.encode(text)
    assert b"".join(TOKENIZER.token_bytes(i) for i in ids) == text.encode()
    assert "\ufffd" in "".join(TOKENIZER.token_text(i) for i in ids)  # characters made of several tokens


def test_sentencepiece_text_has_no_space_that_was_not_there(sentencepiece: Tokenizer) -> None:
    for text in ("hello", " hello", "  a", "é", ""):
        ids = sentencepiece.encode(text)
        assert sentencepiece.decode(ids) == text
        assert sentencepiece.decode(ids) == sentencepiece._rust.decode(ids)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidRequestError):
        TOKENIZER.encode("a\ud800")


def test_threads_may_share_a_tokenizer() -> None:
    want = [TOKENIZER.encode(text * 50) for text in TEXTS]
    got: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: got.append([TOKENIZER.encode(text * 50) for text in TEXTS]))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 4


def test_batches_encode_as_single_texts_do() -> None:
    assert TOKENIZER.encode_batch(TEXTS) == [TOKENIZER.encode(text) for text in TEXTS]


def test_eos_comes_from_the_model_where_the_tokenizer_is_silent(tmp_path: Path) -> None:
    TOKENIZER._rust.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(model_at(tmp_path, bos_token_id=1, eos_token_ids=(2, 0)))
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_templates_of_a_directory_are_found_by_name(tmp_path: Path) -> None:
    save(tmp_path, chat_template=[{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}])
    assert load_tokenizer(model_at(tmp_path)).chat_templates == {"default": "A", "tool_use": "B"}
    (tmp_path / "chat_template.jinja").write_text("C")
    assert load_tokenizer(model_at(tmp_path)).chat_templates == {"default": "C", "tool_use": "B"}


def test_the_argument_comes_before_the_model(tmp_path: Path) -> None:
    save(tmp_path, chat_template="mine")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(model_at(smollm2_file()), str(path)).chat_templates == {"default": "mine"}


def test_added_tokens_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, added_tokens_decoder={"60000": {"content": "<far>"}})
    with pytest.raises(ConfigError, match="'<far>' at id 60000"):
        load_tokenizer(model_at(tmp_path))


def test_an_unsupported_decoder_is_an_error(tmp_path: Path) -> None:
    rust = RustTokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    rust.decoder = decoders.CTC()
    rust.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="CTC"):
        load_tokenizer(model_at(tmp_path))


@pytest.mark.parametrize(("file", "content", "message"), [
    ("tokenizer.json", "{", "cannot be read"),
    ("tokenizer_config.json", "[1]", "must hold a JSON object"),
    ("tokenizer_config.json", "{", "not valid JSON"),
    ("tokenizer_config.json", "[" * 200_000, "not valid JSON"),
    ("tokenizer_config.json", '{"bos_token": 5}', "bos_token must be a text or an object with its content, is 5"),
    ("tokenizer_config.json", '{"additional_special_tokens": [["a"]]}', "additional_special_tokens must be a text"),
    ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "chat_template must be a template, or"),
    ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be a template, or"),
    ("added_tokens.json", '{"<x>": [1]}', "the added tokens cannot be read"),
    ("special_tokens_map.json", '{"unk_token": {"content": 1}}', "unk_token must be a text"),
    ("chat_template.jinja", b"\xff", "cannot be read"),
])
def test_broken_files_are_errors_that_name_them(tmp_path: Path, file: str, content: str | bytes, message: str) -> None:
    save(tmp_path)
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=f"{file}.*{message}"):
        load_tokenizer(model_at(tmp_path))


def test_what_the_rust_package_says_in_its_own_errors_is_a_line_that_names_the_file(tmp_path: Path) -> None:
    save(tmp_path, added_tokens_decoder={"49152": {"content": "<x>", "lstrip": "yes"}})
    with pytest.raises(ConfigError, match=r"\Atokenizer.json cannot be read: .*instance of 'bool'\Z".replace(
            "tokenizer.json", re.escape(str(tmp_path / "tokenizer.json")))):
        load_tokenizer(model_at(tmp_path))


def test_no_tokenizer_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no tokenizer files .* Download the model.s, and put them there"):
        load_tokenizer(model_at(tmp_path))
    with pytest.raises(ConfigError, match="--tokenizer"):
        load_tokenizer(model_at(tmp_path), "some/name")


def test_the_text_side_brings_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """Nor do tokenizers of any kind that is read here."""
    modules = ["chat_template", "detokenizer", "stop", "generation", "outputs"]
    gpt2, tekken = tmp_path / "gpt2", tmp_path / "tekken"
    for directory in (gpt2, tekken):
        directory.mkdir()
    save_vocab_merges(gpt2, tokenizer_class="GPT2Tokenizer")
    (tekken / "tekken.json").write_text(json.dumps(tekken_contents()))
    kinds = [smollm2_file(), save(tmp_path), gpt2, tekken, SENTENCEPIECE / "llama.model"]
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
            + "".join(f"import quire.engine.frontend.{name}\n" for name in modules)
            + "from quire.engine.tokenizers.tokenizer import load_tokenizer\n"
            "from quire.engine.model_config import ModelConfig\n"
            f"for path in {[str(path) for path in kinds]}:\n"
            "    load_tokenizer(ModelConfig(path, 'hf', '', '', 0, 0, 0, 0, 0, 0, 0), path).encode('Hello')\n"
            "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_what_only_transformers_knows_is_converted_by_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    named = dict.fromkeys(("bos_token", "cls_token", "sep_token", "unk_token"), "<|endoftext|>")
    save_vocab_merges(tmp_path, tokenizer_class="RobertaTokenizer", **named)
    tokenizer, theirs = load_tokenizer(model_at(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    text = "Hello there, the licensed work\n"
    assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_of_several_kinds_in_a_directory_the_first_counts(tmp_path: Path) -> None:
    def puts(name: str, source: str) -> Callable[[Path], object]:
        return lambda path: shutil.copy(SENTENCEPIECE / source, path / name)

    last_first: list[tuple[str, Callable[[Path], object]]] = [
        ("vocab.json", lambda path: save_vocab_merges(path, tokenizer_class="GPT2Tokenizer")),
        ("another.model", puts("another.model", "llama.model")),
        ("tokenizer.model.v1", puts("tokenizer.model.v1", "unigram.model")),
        ("tokenizer.model.v3", puts("tokenizer.model.v3", "gemma.model")),
        ("tokenizer.model", puts("tokenizer.model", "replacing.model")),
        ("tekken.json", lambda path: (path / "tekken.json").write_text(json.dumps(tekken_contents()))),
        ("tokenizer.json", save),
    ]
    text, seen = "Hello,\n the licensed  work", []
    for name, put in last_first:
        put(tmp_path)
        seen.append(load_tokenizer(model_at(tmp_path)).encode(text))
        assert load_tokenizer(model_at("m"), str(tmp_path / name)).encode(text) == seen[-1]
    assert all(ids not in seen[:i] for i, ids in enumerate(seen))


def test_a_file_of_no_known_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(ConfigError, match=r"qwen\.tiktoken is of no known kind"):
        load_tokenizer(model_at("m"), str(tmp_path / "qwen.tiktoken"))
    with pytest.raises(ConfigError, match=r"qwen\.tiktoken lists tokens, but not how texts are cut"):
        load_tokenizer(model_at(tmp_path))
