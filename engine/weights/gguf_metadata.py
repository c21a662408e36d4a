"""Reads what a GGUF file says of itself: its metadata, and where each tensor lies.

Every length in the file is checked against the file's end before it is used, and memory taken stays in proportion to
the bytes read. Refuses to know what keys mean, and imports neither torch nor numpy: the tokenizer of every HTTP worker
and the weight loader of every rank start here.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.engine.errors import WeightError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _UINT32 = 8, 9, 4
# value type -> struct letter; the numbers are the format's own
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", _UINT32: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALAR_READERS = {kind: struct.Struct("<" + letter) for kind, letter in _SCALARS.items()}
_LENGTH = struct.Struct("<Q")
_MAX_DIMENSIONS = 4
_MOST_A_BYTE = 8  # numbers that a byte of a tensor stands for; of the tightest type there are 7
_MIN_BYTES = {_STRING: 8, _ARRAY: 12}  # the least an element of these types takes in the file
_MAX_NESTING = 4
_DEFAULT_ALIGNMENT = 32
_FLOAT32 = 0  # GGML's number of that type


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies; `shape` is in torch's order (the last dimension is contiguous)."""

    name: str
    shape: tuple[int, ...]
    type_id: int  # GGML's number of the (quantised) type
    offset: int  # bytes from the beginning of the file
    part: int = 0  # which of the model's files, where it has several


@dataclass(frozen=True, slots=True)
class GgufHeader:
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The key-value part of a GGUF file; arrays as lists.

    Raises:
        WeightError: the file is not GGUF, or is cut short or malformed.
    """
    return _read(path, with_tensors=False).metadata


def read_header(path: str | Path) -> GgufHeader:
    """Metadata and tensor table. Raises WeightError as `read_metadata` does."""
    return _read(path, with_tensors=True)


def read_float32(path: str | Path, tensor: TensorInfo) -> list[float]:
    """A small tensor's numbers. Raises WeightError where they are not float32, or the file ends before them."""
    count = math.prod(tensor.shape)
    if tensor.type_id != _FLOAT32:
        raise WeightError(f"{path}: tensor {tensor.name!r} has GGML type {tensor.type_id}; float32 "
                          f"({_FLOAT32}) is needed")
    try:
        with open(path, "rb") as file:
            file.seek(tensor.offset)
            return list(struct.unpack(f"<{count}f", file.read(4 * count)))
    except (OSError, struct.error) as error:
        raise WeightError(f"{path}: tensor {tensor.name!r} cannot be read: {error}") from error


def _read(path: str | Path, *, with_tensors: bool) -> GgufHeader:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data, str(path)).header(with_tensors)
    except (OSError, ValueError) as error:  # mmap's word for an empty file is ValueError
        raise WeightError(f"{path}: cannot be read as GGUF: {error}") from error


class _Cursor:
    def __init__(self, data: mmap.mmap, path: str) -> None:
        self._data = data
        self._end = len(data)
        self._pos = 0
        self._path = path

    def header(self, with_tensors: bool) -> GgufHeader:
        if self._take(4) != _MAGIC:
            raise self._error("does not begin with 'GGUF'; is it a GGUF file, and downloaded whole?")
        version = self._scalar(_UINT32)
        if version not in _VERSIONS:
            raise self._error(f"is GGUF version {version}; versions {_VERSIONS} are read (big-endian files are not)")
        num_tensors = self._length()
        num_values = self._length()
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._string()
            metadata[key] = self._value(self._scalar(_UINT32), key)
        tensors = self._tensors(num_tensors, metadata) if with_tensors else {}
        return GgufHeader(metadata, tensors)

    def _tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, TensorInfo]:
        rows = []
        for _ in range(count):
            name = self._string()
            num_dimensions = self._scalar(_UINT32)
            if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
                raise self._error(f"tensor {name!r} has {num_dimensions} dimensions; 1 to {_MAX_DIMENSIONS} exist")
            shape = tuple(reversed([self._length() for _ in range(num_dimensions)]))
            rows.append((name, shape, self._scalar(_UINT32), self._length()))
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment % 8:
            raise self._error(f"general.alignment is {alignment!r}; it must be a positive multiple of 8")
        start = -(-self._pos // alignment) * alignment
        tensors = {}
        for name, shape, type_id, offset in rows:
            if start + offset > self._end:
                raise self._error(f"tensor {name!r} begins at byte {start + offset}, past the end; it is cut short")
            left = self._end - start - offset
            if math.prod(shape) > _MOST_A_BYTE * left:
                raise self._error(f"tensor {name!r} has the shape {list(shape)}, and {left} bytes from its beginning "
                                  "on; it is cut short or malformed")
            tensors[name] = TensorInfo(name, shape, type_id, start + offset)
        return tensors

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(kind, key)
        element = self._scalar(_UINT32)
        count = self._length()
        if depth == _MAX_NESTING:
            raise self._error(f"{key!r} nests arrays more than {_MAX_NESTING} deep")
        if element in _SCALARS:
            return self._numbers(element, count)
        if element not in _MIN_BYTES:
            raise self._error(f"{key!r} is an array of unknown type {element}")
        self._check(count * _MIN_BYTES[element])  # before any element is read: a wild count must not cost memory
        if element == _STRING:
            return self._strings(count, key)
        return [self._value(_ARRAY, key, depth + 1) for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> list[Any]:
        data = self._take(count * _SCALAR_READERS[kind].size)
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", data))

    def _strings(self, count: int, key: str) -> list[str]:
        """The hot loop: a vocabulary has 10**5 of them."""
        data, pos, end, read_length = self._data, self._pos, self._end, _LENGTH.unpack_from
        strings = []
        try:
            for _ in range(count):
                start = pos + 8
                pos = start + read_length(data, pos)[0]
                if pos > end:
                    break
                strings.append(data[start:pos].decode())
        except UnicodeDecodeError as error:
            raise self._error(f"{key!r} holds a string that is not UTF-8: {error}") from error
        except struct.error:
            pos = end + 1
        if pos > end:
            raise self._error(f"ends inside {key!r}; the file is cut short or malformed")
        self._pos = pos
        return strings

    def _string(self) -> str:
        raw = self._take(self._length())
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._error(f"holds a string at byte {self._pos - len(raw)} that is not UTF-8: {error}") from error

    def _scalar(self, kind: int, key: str = "") -> Any:
        reader = _SCALAR_READERS.get(kind)
        if reader is None:
            raise self._error(f"{key!r} has unknown type {kind}")
        return reader.unpack(self._take(reader.size))[0]

    def _length(self) -> int:
        return int(_LENGTH.unpack(self._take(8))[0])

    def _take(self, size: int) -> bytes:
        self._check(size)
        start = self._pos
        self._pos = start + size
        return self._data[start:self._pos]

    def _check(self, size: int) -> None:
        if size > self._end - self._pos:
            raise self._error(f"wants {size} bytes at byte {self._pos} of {self._end}; it is cut short or malformed")

    def _error(self, what: str) -> WeightError:
        return WeightError(f"{self._path}: {what}.")
