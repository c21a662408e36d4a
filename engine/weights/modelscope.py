"""A repository of ModelScope's hub, through that hub's own client (the package `modelscope`) and its cache.

Called by `hub`; the client is imported late, and need not be there where nobody asks for this hub.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from importlib import metadata
from pathlib import Path

OLDEST_CLIENT = "1.40"  # the first that lists the files of a revision and tells their sizes


class ModelScopeRepository:
    token_variable = "MODELSCOPE_API_TOKEN"
    cache_variable = "MODELSCOPE_CACHE"

    def __init__(self, name: str, revision: str | None, cache: str | None) -> None:
        """Raises ImportError where the client is not there, or too old."""
        version = metadata.version("modelscope")
        if [*map(int, version.split(".")[:2])] < [*map(int, OLDEST_CLIENT.split("."))]:
            raise ImportError(f"modelscope {version} is too old")
        self._name = name
        self._revision = revision
        self._cache = cache
        self.directory = Path(cache or os.environ.get(self.cache_variable) or "~/.cache/modelscope").expanduser()
        self._all: list[str] = []
        self._folder: Path | None = None

    def sends_token(self) -> bool:
        return bool(os.environ.get(self.token_variable))

    def files(self) -> dict[str, int]:
        """Names and bytes."""
        from modelscope.hub.api import HubApi

        files = HubApi().get_model_files(self._name, revision=self._revision, recursive=True)
        sizes = {str(file["Path"]): int(file.get("Size") or 0) for file in files if file.get("Type") != "tree"}
        self._all = list(sizes)
        # Where the client keeps them depends on its version and on what older ones left: fetching nothing, it tells.
        self._folder = self._snapshot(self._all)
        return sizes

    def fetch(self, names: list[str]) -> Path:
        return self._snapshot([name for name in self._all if name not in names])

    def cached(self) -> Path:
        return self._snapshot([], local_files_only=True)

    def bytes_here(self, sizes: dict[str, int]) -> int:
        """How much of these files is on the disk, unfinished ones included."""
        assert self._folder is not None
        return sum(min(size, _bytes_of(self._folder / name)) for name, size in sizes.items())

    def _snapshot(self, ignored: list[str], local_files_only: bool = False) -> Path:
        """What is not wanted is named, since the client asks the hub once for each pattern of what is."""
        from modelscope.hub.snapshot_download import snapshot_download

        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)  # it tells of each step; errors are raised too
        return Path(snapshot_download(self._name, revision=self._revision, cache_dir=self._cache,
                                      ignore_patterns=[glob.escape(name) for name in ignored],
                                      local_files_only=local_files_only))


def _bytes_of(path: Path) -> int:
    """The file's, or those of what the client writes beside it until it is whole: one piece, or several."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    found = 0
    with contextlib.suppress(OSError):
        for piece in path.parent.glob(f"{glob.escape(path.name)}?*"):
            found += piece.stat().st_size
    return found
