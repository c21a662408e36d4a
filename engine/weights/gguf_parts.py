"""The files of one GGUF model: one, or parts named model-00001-of-00003.gguf, of which the first has the metadata.

Refuses to know what the metadata means. Called by whoever looks for a model's files, and by the GGUF readers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from quire.engine.arguments import shown
from quire.engine.errors import WeightError
from quire.engine.weights.gguf_metadata import GgufHeader, read_header

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_PARTS = 99999  # that their names have room for
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class GgufModel:
    """The first file's metadata and the tensors of all `files`; a tensor's `part` says which of them holds it."""

    header: GgufHeader
    files: list[Path]


def part_names(name: str) -> list[str]:
    """The names of all parts of the model to which the file called `name` belongs: itself alone where it is no part."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    return [f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


def read_model(path: Path) -> GgufModel:
    """The model whose only or first file is `path`.

    Raises:
        WeightError: a file is malformed, missing or another model's; the message names it.
    """
    header = read_header(path)
    count = header.metadata.get(_COUNT, 1)
    if count == 1:
        return GgufModel(header, [path])
    if type(count) is not int or not 1 < count <= _MOST_PARTS:
        raise WeightError(f"{path}: {_COUNT} is {shown(count)}; it must be a number of parts, {_MOST_PARTS} at most")
    names = part_names(path.name)
    if len(names) != count:
        raise WeightError(f"{path}: says that it is one of {count} parts, and its name does not end in "
                          f"-00001-of-{count:05}.gguf; give the parts back the names that they were published under")
    if header.metadata.get(_NUMBER) != 0:
        raise WeightError(f"{path}: is not the first part of its model; name {names[0]}")
    files = [path.with_name(name) for name in names]
    tensors = dict(header.tensors)
    for number, file in enumerate(files[1:], 1):
        if not file.is_file():
            raise WeightError(f"{file}: is missing, part {number + 1} of {count}; was the download completed?")
        part = read_header(file)
        for key, expected in ((_NUMBER, number), (_COUNT, count), (_TENSORS, header.metadata.get(_TENSORS))):
            if part.metadata.get(key) != expected:
                raise WeightError(f"{file}: is no part of {path.name}: its {key} is {part.metadata.get(key)}, not "
                                  f"{expected}")
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise WeightError(f"{file}: is no part of {path.name}: tensor {name!r} is in an earlier part too")
            tensors[name] = replace(tensor, part=number)
    stated = header.metadata.get(_TENSORS, len(tensors))
    if len(tensors) != stated:
        raise WeightError(f"{path}: its {count} parts hold {len(tensors)} tensors, and {_TENSORS} is {stated}; one of "
                          "them is another model's")
    return GgufModel(GgufHeader(header.metadata, tensors), files)
