"""Text to token ids and back, for one model.

Encoding is the `tokenizers` package's. Decoding is ours: every token stands for fixed bytes, so a text is the tokens'
bytes joined, whole or piece by piece, in time that is linear in the tokens. Refuses to know torch, requests and
sampling; used by every HTTP worker and by `LLM`. Safe to use from several threads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from quire.engine.errors import ConfigError, InvalidRequestError, WeightError
from quire.engine.model_config import ModelConfig
from quire.engine.tokenizers import gguf_tokenizer, sentencepiece_tokenizer, tekken_tokenizer, vocab_merges_tokenizer
from quire.engine.tokenizers.byte_level import BYTE_OF
from quire.engine.tokenizers.control_tokens import ControlTokens, Rendered, SeparateEncoder, control_tokens
from quire.engine.tokenizers.tokenizer_config import read_config
from quire.engine.tokenizers.tokenizer_files import (
    GGUF,
    JSON,
    SENTENCEPIECE,
    TEKKEN,
    VOCAB_MERGES,
    TokenizerFiles,
    find_tokenizer,
)
from quire.engine.tokenizers.vocabulary import Vocabulary, surround
from quire.engine.weights.gguf_metadata import read_metadata

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Encoding takes up to 500 bytes of memory for a character, so a text is counted by pieces before it is encoded whole. A
# cut makes tokens that the whole text lacks: some few, and far fewer than are taken off for it.
_PIECE_CHARS = 64 * 2**10
_TOKENS_OF_A_CUT = 1024
_PREFIX_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class Tokenizer:
    """A model's tokenizer.

    `special_tokens` maps "bos_token" and its like to texts; `chat_templates` maps names ("default", "tool_use") to
    Jinja sources; `strips_leading_space` says that the first space of a whole text is the tokenizer's own.
    """

    def __init__(self, rust: RustTokenizer, *, special_tokens: dict[str, str], vocab_size: int | None = None,
                 chat_templates: dict[str, str] | None = None) -> None:
        self._rust = rust
        self.special_tokens = special_tokens
        self.chat_templates = chat_templates or {}
        self.vocab_size = vocab_size or rust.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_id = self._id_of("eos_token")
        added = rust.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._style, self.strips_leading_space = _decoder_style(rust)
        self.spaces_tokens = self._style == "words"  # a space stands before each, special or not
        self._bytes: dict[int, bytes] = {}
        self._longest_token = self._find_longest_token()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with the special tokens (such as BOS) that the checkpoint's tokenizer puts around a text, or not.

        Raises:
            InvalidRequestError: the text is not valid Unicode.
        """
        if isinstance(text, Rendered):
            return self._separate_encoder.encode(text, add_special_tokens)
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """As `encode`, for many texts on several threads."""
        try:
            # Unlike `encode`, this releases the GIL, and it skips the offsets that nobody reads.
            encodings = self._rust.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError(f"The text cannot be tokenized; is it valid Unicode? {error}",
                                      "prompt") from error
        return [encoding.ids for encoding in encodings]

    @cached_property
    def control_tokens(self) -> ControlTokens | None:
        """Those that messages may not make; None where there are none."""
        tokens, normalizer = control_tokens(self._rust), self._rust.normalizer
        if not tokens:
            return None
        after_normalizing = normalizer is not None and (
            any(token.normalized for token in tokens) or self._separate_encoder.spells_control())
        return ControlTokens(tokens, normalizer.normalize_str if after_normalizing else None)

    @cached_property
    def _separate_encoder(self) -> SeparateEncoder:
        return SeparateEncoder(self._rust, control_tokens(self._rust))

    def fewest_tokens(self, text: str) -> int:
        """What `text` cannot come below, at once and however long it is; 0 where that is not known.

        Characters that the vocabulary cannot spell, such as some control characters, count although they are dropped.
        """
        longest = self._longest_token
        return 0 if longest is None else -(-len(text) // longest)

    def counted_tokens(self, text: str, enough: int) -> int:
        """What `text` does not come below, counted from its beginning until there are `enough`; 0 for a short text.

        Takes the memory of one piece, however long the text is. Raises what `encode` raises.
        """
        counted = 0
        if len(text) > _PIECE_CHARS:
            pieces = text.pieces(_PIECE_CHARS) if isinstance(text, Rendered) else (
                text[start:start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS))
            for piece in pieces:
                counted += max(0, len(self.encode(piece, add_special_tokens=False)) - _TOKENS_OF_A_CUT)
                if counted >= enough:
                    break
        return counted

    def _find_longest_token(self) -> int | None:
        """How many characters of a text a token can stand for; None where that is not known."""
        added = self._rust.get_added_tokens_decoder().values()
        if self._style != "bytes" or any(token.lstrip or token.rstrip for token in added):
            return None
        longest = max(map(len, self._rust.get_vocab()))  # a character of a token's spelling is a byte of the text
        normalizer = self._rust.normalizer
        if normalizer is None:
            return longest
        # Composition makes one character of at most four; what other normalizers drop, nobody knows.
        return 4 * longest if json.loads(normalizer.__getstate__())["type"] == "NFC" else None

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(self.pieces(token_ids, skip_special_tokens)).decode(errors="replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def pieces(self, token_ids: Iterable[int], skip_special_tokens: bool) -> list[bytes]:
        """Each token's bytes, those of skipped ones left out."""
        known, special = self._bytes, self.special_ids
        return [known[i] if i in known else self.token_bytes(i) for i in token_ids
                if not (skip_special_tokens and i in special)]

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for inside a text, which may be a part of a character; empty for unknown ids."""
        piece = self._bytes.get(token_id)
        if piece is None:
            piece = self._bytes[token_id] = self._spell(token_id)
        return piece

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD for what is not a whole character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def _spell(self, token_id: int) -> bytes:
        if token_id < 0:
            return b""
        token = self._rust.id_to_token(token_id)
        if token is None:  # the embedding is padded beyond the vocabulary
            return b""
        if self._style == "words":
            return b" " + token.encode()
        if token_id in self.special_ids:
            return token.encode()
        if self._style == "bytes":
            if token_id in self.added_ids or not all(c in BYTE_OF for c in token):
                return token.encode()
            return bytes(BYTE_OF[c] for c in token)
        match = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token.replace(sentencepiece_tokenizer.SPACE, " ").encode()

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._rust.token_to_id(text)


def end_token_ids(model: ModelConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Ids that end generation: the model's own, and the end that the tokenizer names.

    A chat model that was made from a base model often names the end of a turn there alone.
    """
    named = tokenizer.eos_token_id if tokenizer is not None else None
    return model.eos_token_ids if named is None else (*model.eos_token_ids, named)


def load_tokenizer(model: ModelConfig, tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer of `model`, or the one at the path `tokenizer` (a directory or a file).

    Raises:
        ConfigError: there is none, or it is of a kind that is not supported; the message says what to do.
    """
    files = find_tokenizer(model, tokenizer)
    try:
        return _from_gguf(files.file) if files.kind == GGUF else _from_directory(files, model)
    except ConfigError:
        raise
    except WeightError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:  # the Rust package raises bare Exception, and a file may hold anything
        raise ConfigError(f"{files.file} cannot be read: {_in_a_line(error)}") from error


def _from_gguf(path: Path) -> Tokenizer:
    vocabulary = gguf_tokenizer.build(read_metadata(path), str(path))
    rust, special = vocabulary.rust, vocabulary.special_tokens
    surround(rust, special.get("bos_token") if vocabulary.add_bos else None,
             special.get("eos_token") if vocabulary.add_eos else None)
    return Tokenizer(rust, special_tokens=special, vocab_size=vocabulary.num_tokens,
                     chat_templates=vocabulary.chat_templates)


def _from_directory(files: TokenizerFiles, model: ModelConfig) -> Tokenizer:
    """As transformers does, tokenizer.json alone decides about BOS; add_bos_token is for vocabularies without it."""
    config = read_config(files.directory)
    vocabulary = _vocabulary(files, config.values, str(model.hf.get("model_type")))
    rust = vocabulary.rust if vocabulary is not None else _whole(files)
    rust.no_truncation()
    rust.no_padding()
    special = {**(vocabulary.special_tokens if vocabulary is not None else {}), **config.special_tokens}
    for name, ids in (("bos_token", [model.bos_token_id]), ("eos_token", model.eos_token_ids)):
        if name not in special and ids and ids[0] is not None and (text := rust.id_to_token(ids[0])):
            special[name] = text
    if vocabulary is None:
        _add_tokens(rust, [(id, token) for id, token in config.added_tokens
                           if rust.token_to_id(token["content"]) is None], files.file)
    else:  # found in the text as it is: a vocabulary's normalizer may put a space before them
        _add_tokens(rust, [(id, {**token, "normalized": False})
                           for id, token in config.added_tokens or config.older_added_tokens], files.file)
    known = {token.content for token in rust.get_added_tokens_decoder().values() if token.special}
    named = [*special.values(), *config.more_special_tokens]
    rust.add_special_tokens([t for t in dict.fromkeys(named) if t not in known and rust.token_to_id(t) is not None])
    if vocabulary is not None:
        special = {name: text for name, text in special.items() if rust.token_to_id(text) is not None}
        surround(rust, special.get("bos_token") if config.adds("bos", vocabulary.add_bos) else None,
                 special.get("eos_token") if config.adds("eos", vocabulary.add_eos) else None)
    return Tokenizer(rust, special_tokens=special, chat_templates=config.chat_templates)


def _vocabulary(files: TokenizerFiles, config: dict[str, Any], model_type: str) -> Vocabulary | None:
    """What `files` hold, as far as it is no more than a vocabulary."""
    if files.kind == SENTENCEPIECE:
        return sentencepiece_tokenizer.build(files.file, config)
    if files.kind == TEKKEN:
        return tekken_tokenizer.build(files.file)
    if files.kind == VOCAB_MERGES and vocab_merges_tokenizer.is_known(config, model_type):
        return vocab_merges_tokenizer.build(files.file, config, model_type)
    return None


def _whole(files: TokenizerFiles) -> RustTokenizer:
    return RustTokenizer.from_file(str(files.file)) if files.kind == JSON else _converted(files.directory)


def _converted(path: Path) -> RustTokenizer:
    """What transformers alone knows: vocab.json and merges.txt of a tokenizer's class that `vocab_merges_tokenizer`
    does not know, such as RoBERTa's and CLIP's, and files of other names."""
    try:
        from transformers import AutoTokenizer  # heavy, and hardly a checkpoint is of these kinds

        slow = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        return slow.backend_tokenizer
    except Exception as error:
        raise ConfigError(
            f"{path} holds no tokenizer.json, and its other tokenizer files could not be converted: "
            f"{_in_a_line(error)} Convert them once with transformers "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(DIR)) and pass --tokenizer DIR.") from error


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _add_tokens(rust: RustTokenizer, stated: list[tuple[int, dict[str, Any]]], file: Path) -> None:
    """Tokens that are stated beside the vocabulary in `file` are found in a text, and have the ids that are stated."""
    added = rust.get_added_tokens_decoder()
    for token_id, entry in stated:
        token = AddedToken(**entry)
        known = added.get(token_id)
        # Of tokens that the vocabulary itself adds, it knows best how they are found.
        if known is None or known.content != token.content or token.special > known.special:
            rust.add_tokens([token])
        if rust.token_to_id(token.content) != token_id:
            raise ConfigError(f"{file} leaves no room for {token.content!r} at id {token_id}, where "
                              "tokenizer_config.json or added_tokens.json puts it; the files do not belong together.")


def _decoder_style(rust: RustTokenizer) -> tuple[str, bool]:
    """How tokens are spelled ("bytes", "spaces" or "words"), and whether a text's first space is not its own."""
    if rust.decoder is None:
        return "words", True
    state = json.loads(rust.decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    names = {step["type"] for step in steps}
    if "ByteLevel" in names and names <= {"ByteLevel", "ByteFallback", "Fuse"}:
        return "bytes", False
    unknown = sorted(names - _PREFIX_DECODERS)
    if unknown:
        raise ConfigError(f"The tokenizer's decoder has the steps {unknown}, which are not supported; byte-level and "
                          "SentencePiece tokenizers are.")
    strips = any(s["type"] == "Strip" or (s["type"] == "Metaspace" and s.get("prepend_scheme") != "never")
                 for s in steps)
    return "spaces", strips
