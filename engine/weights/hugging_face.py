"""A repository of Hugging Face's hub, or of a mirror of it, through that hub's own client and its cache.

Called by `hub`; the client is imported late, a local model needs none.
"""

from __future__ import annotations

import contextlib
import glob
import os
from pathlib import Path

LIST_S = 10.0


class HuggingFaceRepository:
    token_variable = "HF_TOKEN"
    cache_variable = "HF_HOME"

    def __init__(self, name: str, revision: str | None, cache: str | None) -> None:
        from huggingface_hub.constants import HF_HUB_CACHE

        self._name = name
        self._revision = revision
        self._cache = cache
        self.directory = Path(cache or HF_HUB_CACHE).expanduser()
        self._folder = self.directory / f"models--{name.replace('/', '--')}"
        self._blobs: dict[str, str] = {}

    def sends_token(self) -> bool:
        from huggingface_hub import constants, get_token

        return not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and get_token() is not None

    def files(self) -> dict[str, int]:
        """Names and bytes."""
        from huggingface_hub import HfApi

        info = HfApi().model_info(self._name, revision=self._revision, files_metadata=True, timeout=LIST_S)
        files = info.siblings or []
        self._blobs = {file.rfilename: str(file.lfs.sha256 if file.lfs else file.blob_id) for file in files}
        return {file.rfilename: file.size or 0 for file in files}

    def fetch(self, names: list[str]) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self._name, revision=self._revision, cache_dir=self._cache,
                                      allow_patterns=[glob.escape(name) for name in names]))

    def cached(self) -> Path:
        """Not by the client, to which a snapshot without the files that nobody wanted is an incomplete one.

        Raises FileNotFoundError.
        """
        commit = self._revision or "main"
        with contextlib.suppress(FileNotFoundError):
            commit = (self._folder / "refs" / commit).read_text().strip()
        folder = self._folder / "snapshots" / commit
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no {folder}")
        return folder

    def bytes_here(self, sizes: dict[str, int]) -> int:
        """How much of these files is on the disk, unfinished ones included."""
        found: dict[str, int] = {}
        with contextlib.suppress(OSError):
            for file in os.scandir(self._folder / "blobs"):
                blob = file.name.partition(".")[0]
                with contextlib.suppress(OSError):  # it was just moved to its own name
                    found[blob] = max(found.get(blob, 0), file.stat().st_size)
        return sum(min(size, found.get(self._blobs[name], 0)) for name, size in sizes.items())
