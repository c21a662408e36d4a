"""SmolLM2's tokenizer, and small vocabularies written as GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from hypothesis import strategies as st

from quire.engine.model_config import ModelConfig
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer

# SmolLM2's vocabulary lacks the bytes of some control characters and of the planes that have no characters.
SMOLLM2_TEXT = st.text(st.one_of(st.just("\n"), st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def model_at(path: Path | str, **known: Any) -> ModelConfig:
    return ModelConfig(str(path), "hf", "LlamaForCausalLM", "float32", 0, 0, 0, 0, 0, 0, 0, **known)


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(model_at(smollm2_path))


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a vocabulary: (text, score, type) rows, and any other tokenizer.* metadata."""

    def write(kind: str, rows: list[tuple[str, float, int]], **other: Any) -> Path:
        path = tmp_path / "vocabulary.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model(kind)
        writer.add_token_list([text for text, _, _ in rows])
        writer.add_token_scores([score for _, score, _ in rows])
        writer.add_token_types([type for _, _, type in rows])
        for name, value in other.items():
            getattr(writer, f"add_{name}")(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    return write


# A SentencePiece vocabulary: specials, all bytes, single characters, and words with their scores.
WORDS = {"\u2581": -1.0, "h": -2.0, "e": -2.1, "l": -2.2, "o": -2.3, "a": -2.4, "he": -3.0, "ll": -3.5, "hell": -4.0,
         "lo": -3.2, "llo": -5.0,
         "\u2581he": -2.9, "\u2581hell": -6.0, "\u2581a": -3.1, "\u2581\u2581": -7.0, "oh": -3.3}


@pytest.fixture
def sentencepiece(write_gguf: Callable[..., Path]) -> Tokenizer:
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL),
            *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
            *((word, score, NORMAL) for word, score in WORDS.items())]
    path = write_gguf("llama", rows, bos_token_id=1, eos_token_id=2, unk_token_id=0, add_bos_token=True)
    return load_tokenizer(model_at(path))
