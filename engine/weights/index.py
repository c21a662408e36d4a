"""The files of a checkpoint that is whole, or cut into several with an index. Called by the checkpoint readers."""

from __future__ import annotations

import json
from pathlib import Path

from quire.engine.errors import WeightError


def has_checkpoint(directory: Path, name: str) -> bool:
    """Whether there is a file `name`, or an index of its parts."""
    return (directory / name).is_file() or (directory / f"{name}.index.json").is_file()


def checkpoint_files(directory: Path, name: str) -> list[Path]:
    """The file `name`, or those that its index says.

    Raises:
        WeightError: there is neither, or the index names what is not there.
    """
    index = directory / f"{name}.index.json"
    if not index.is_file():
        if (directory / name).is_file():
            return [directory / name]
        raise WeightError(f"{directory} holds neither {name} nor {index.name}")
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not files or not all(isinstance(file, str) for file in files):
            raise ValueError("it names no files")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise WeightError(f"{index}: is not an index of checkpoint files: {error!r}") from error
    for file in files:
        if Path(file).name != file:
            raise WeightError(f"{index}: names {file!r}, which is not a file of that directory")
        if not (directory / file).is_file():
            raise WeightError(f"{index}: names {file!r}, which is not there; was the download completed?")
    return [directory / file for file in files]
