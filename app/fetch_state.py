"""How far the model's files are, in a file of the run directory that exists until they are here and found readable.

Written by the process that sees to them (`quire.app.model_files`), read by the launcher and the HTTP workers.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from quire.app import whole_file


class FetchState(msgspec.Struct, frozen=True):
    phase: str = "looking for the model"
    bytes: int = 0
    total_bytes: int = 0  # 0: not known yet
    eta_s: float | None = None
    problems: list[str] = []  # why the model cannot be served, once that is known

    @property
    def fraction(self) -> float:
        return self.bytes / self.total_bytes if self.total_bytes else 0.0

    def save(self, path: str) -> None:
        whole_file.replace(path, msgspec.json.encode(self))

    @classmethod
    def load(cls, path: str) -> FetchState:
        """Raises FileNotFoundError once the files are here."""
        return msgspec.json.decode(Path(path).read_bytes(), type=cls)
