"""Reads a SentencePiece file (`tokenizer.model`): its pieces, and how texts are normalized before they are cut.

The file is one protobuf message, of which few fields matter here; the others are stepped over. Every length in it is
checked against what is left before it is used, and memory taken stays in proportion to the file. Refuses to know how
texts are cut: called by `quire.engine.tokenizers.sentencepiece_tokenizer`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quire.engine.errors import ConfigError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models; there are two more, which no language model uses
_MAX_FILE_BYTES = 2**28  # the largest published ones have 2**23
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BITS = 64
_SPECIAL_PIECES = (("unk_token", 45, b"<unk>"), ("bos_token", 46, b"<s>"), ("eos_token", 47, b"</s>"),
                   ("pad_token", 48, b"<pad>"))  # with their fields in trainer_spec
_FLOAT = struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    texts: list[str]
    scores: list[float]
    types: list[int]
    model_type: int
    byte_fallback: bool
    special_pieces: dict[str, str]  # "bos_token" and its like to texts, which need not be among the pieces
    charsmap: bytes  # compiled rules that replace characters; empty: none are
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    space_is_suffix: bool


def read_model(path: Path) -> SentencePieceModel:
    """The model in the file at `path`.

    Raises:
        ConfigError: it cannot be read, or is no SentencePiece file, or is cut short or malformed.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path}: has {size} bytes; a SentencePiece file has {_MAX_FILE_BYTES} at most. Is it "
                              "one?")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        return _model(data)
    except (_MalformedError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a SentencePiece file: {error}. Is it one, and downloaded whole? "
                          "(A file in tiktoken's form, with a token and a number in each line, is not.)") from error


class _MalformedError(Exception):
    pass


def _model(data: bytes) -> SentencePieceModel:
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value, "a piece")))
            text = _bytes(piece.get(1, b""), "a piece's text").decode()
            if not text:
                raise _MalformedError(f"piece {len(texts)} has no text")
            texts.append(text)
            scores.append(_FLOAT.unpack(_bytes(piece.get(2, b"\0\0\0\0"), "a piece's score", _FLOAT.size))[0])
            types.append(_int(piece.get(3, NORMAL), "a piece's type"))
        elif number == 2:
            trainer.update(_fields(_bytes(value, "trainer_spec")))
        elif number == 3:
            normalizer.update(_fields(_bytes(value, "normalizer_spec")))
    if not (texts and trainer and normalizer):  # the last two come behind the pieces
        raise _MalformedError("it lacks its pieces, its trainer_spec or its normalizer_spec")
    if len(set(texts)) != len(texts):
        raise _MalformedError("it holds a piece twice")
    if not all(map(math.isfinite, scores)):
        raise _MalformedError("a piece's score is no finite number")
    special = {name: _bytes(trainer.get(number, default), name).decode() for name, number, default in _SPECIAL_PIECES}
    return SentencePieceModel(
        texts, scores, types,
        model_type=_int(trainer.get(3, UNIGRAM), "model_type"),
        byte_fallback=bool(_int(trainer.get(35, 0), "byte_fallback")),
        special_pieces=special,
        charsmap=_charsmap(_bytes(normalizer.get(2, b""), "precompiled_charsmap")),
        add_dummy_prefix=bool(_int(normalizer.get(3, 1), "add_dummy_prefix")),
        remove_extra_whitespaces=bool(_int(normalizer.get(4, 1), "remove_extra_whitespaces")),
        escape_whitespaces=bool(_int(normalizer.get(5, 1), "escape_whitespaces")),
        space_is_suffix=bool(_int(trainer.get(24, 0), "treat_whitespace_as_suffix")))


def _charsmap(data: bytes) -> bytes:
    """`data`, whose numbers lead nowhere outside of it: the `tokenizers` package follows them unchecked.

    First comes the length of a trie, then its nodes, then the texts that its leaves point to, each ended by a zero.
    """
    if not data:
        return data
    size = int.from_bytes(data[:4], "little")
    texts = data[4 + size:]
    if size % 4 or 4 + size > len(data) or not size:
        raise _MalformedError("its precompiled_charsmap is cut short")
    nodes = struct.unpack_from(f"<{size // 4}I", data, 4)
    starts = {0, *(i + 1 for i, byte in enumerate(texts) if byte == 0)}
    for i, node in enumerate(nodes):
        if node >> 31 and i:  # a leaf; the first node is followed whatever it is
            continue
        children = i ^ (node >> 10 << ((node & 0x200) >> 6))  # that of a byte is at this number XOR the byte
        has_leaf = node & 0x100
        if children | 0xFF >= len(nodes) or (has_leaf and nodes[children] & 0x7FFFFFFF not in starts):
            raise _MalformedError(f"node {i} of its precompiled_charsmap leads out of it")
    texts.decode()
    return data


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in their order: numbers of varints, all else as the bytes that are there."""
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = _varint(data, pos)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, pos = _varint(data, pos)
            yield number, value
            continue
        if kind == _BYTES:
            size, pos = _varint(data, pos)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _MalformedError(f"field {number} is of the unknown kind {kind}")
        if size > end - pos:
            raise _MalformedError(f"field {number} wants {size} bytes, and {end - pos} are left")
        yield number, data[pos:pos + size]
        pos += size


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """The number at `pos`, seven bits to a byte, and where it ends."""
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        if pos >= len(data):
            raise _MalformedError("it ends inside a number")
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise _MalformedError(f"it holds a number of more than {_VARINT_BITS} bits")


def _int(value: int | bytes, what: str) -> int:
    if not isinstance(value, int):
        raise _MalformedError(f"{what} is no number")
    return value


def _bytes(value: int | bytes, what: str, size: int | None = None) -> bytes:
    if not isinstance(value, bytes) or (size is not None and len(value) != size):
        raise _MalformedError(f"{what} is {'a number' if isinstance(value, int) else f'{len(value)} bytes long'}")
    return value
