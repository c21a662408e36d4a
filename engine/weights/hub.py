"""Models of a hub on this disk: the cached one, or a download that can tell how far it is.

Refuses to know hubs' protocols (`hugging_face`, `modelscope`), which of a repository's files are read (`repository`),
and what they say. Called by `locate`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from quire.engine.errors import ConfigError, FetchError, WeightError
from quire.engine.weights.hugging_face import HuggingFaceRepository
from quire.engine.weights.index import checkpoint_files
from quire.engine.weights.modelscope import OLDEST_CLIENT, ModelScopeRepository
from quire.engine.weights.repository import wanted_files

Report = Callable[[int, int], None]  # bytes that are here, and all; 0 and 0 while that is not known
Repository = HuggingFaceRepository | ModelScopeRepository

POLL_S = 0.25
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)
_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# How Hugging Face's client names a file that it still writes, anew each time. ModelScope's goes on with what is there.
_UNFINISHED = re.compile(r"/blobs/[^/]+\.incomplete$")
# Its own printer, so that lines go to stderr in a program that never configured structlog too.
_log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))


@dataclass(frozen=True, slots=True)
class HubName:
    """organisation/name, and which GGUF file of it, if that was said: a file's path there, or a quantisation."""

    repository: str
    gguf: str | None = None

    @classmethod
    def of(cls, model: str) -> HubName | None:
        """None for what is no hub's name: organisation/name, organisation/name:Q4_K_M, organisation/name/FILE.gguf."""
        repository, colon, quantisation = model.partition(":")
        if not colon and model.endswith(".gguf"):
            organisation, _, rest = model.partition("/")
            name, _, file = rest.partition("/")
            repository, quantisation = f"{organisation}/{name}", file
            colon = "/"
        if not _NAME.fullmatch(repository) or (colon and not quantisation):
            return None
        return cls(repository, quantisation or None)

    def __str__(self) -> str:
        if self.gguf is None:
            return self.repository
        return f"{self.repository}{'/' if self.gguf.endswith('.gguf') else ':'}{self.gguf}"


def fetch(name: HubName, revision: str | None, download_dir: str | None, load_format: str = "auto",
          report: Report | None = None) -> Path:
    """The directory of the model's files, or the (first) GGUF file; `report` is told a few times a second what is here.

    Raises:
        ConfigError: there is no such model for us; FetchError where another try may do better.
    """
    use_modelscope = os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true")
    kind = ModelScopeRepository if use_modelscope else HuggingFaceRepository
    repository: Repository | None = None
    try:
        repository = kind(name.repository, revision, download_dir)
        if _is_offline():
            return _of_cache(repository, name, load_format)
        return _fetched(repository, name, load_format, report)
    except ImportError as error:
        package = f"'modelscope>={OLDEST_CLIENT}'" if use_modelscope else "huggingface_hub"
        why = f"VLLM_USE_MODELSCOPE asks for ModelScope's client: {error}" if use_modelscope else str(error)
        raise ConfigError(f"--model: {name} cannot be fetched: {why}; run: pip install {package}, or give a "
                          "directory") from error
    except ConfigError as error:
        where = " (in the cache; HF_HUB_OFFLINE forbids fetching)" if _is_offline() else ""
        raise type(error)(f"--model: {name}: {error}{where}") from error
    except Exception as error:  # the clients raise their own, their HTTP library's and OSError
        assert repository is not None
        raise _explained(name, repository, error) from error


def drop_unfinished() -> None:
    """Delete the files that this process is writing, which no later fetch goes on with. To be called before an end
    that is not orderly."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            path = os.readlink(descriptor)
            if _UNFINISHED.search(path):
                os.unlink(path)


def _is_offline() -> bool:
    """For both hubs, as in vLLM."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _of_cache(repository: Repository, name: HubName, load_format: str) -> Path:
    """Raises ConfigError where weights are missing: a fetch may have been cut."""
    folder = repository.cached()
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    files = wanted_files(names, load_format, name.gguf)
    for file in files:
        stem = file.removesuffix(".index.json")
        if stem != file:
            try:
                checkpoint_files(folder, stem)
            except WeightError as error:
                raise ConfigError(str(error)) from error
    return _path(folder, files)


def _path(folder: Path, files: list[str]) -> Path:
    return folder / files[0] if files[0].endswith(".gguf") else folder


def _fetched(repository: Repository, name: HubName, load_format: str, report: Report | None) -> Path:
    with _watching(repository, report) as wanted:
        try:
            sizes = repository.files()
        except Exception as error:
            # Down, gone, or not for everybody any more: no hindrance to what is here.
            with contextlib.suppress(Exception):
                path = _of_cache(repository, name, load_format)
                _log.warning("the hub gives no answer; the files in the cache are used", model=name.repository,
                             reason=_first_line(error))
                return path
            raise
        files = wanted_files(sizes, load_format, name.gguf)
        wanted.update({file: sizes[file] for file in files})  # at once: another thread reads it
        _refuse_full_disk(repository, wanted)
        folder = repository.fetch(files)
    return _path(folder, files)


def _refuse_full_disk(repository: Repository, wanted: dict[str, int]) -> None:
    directory = repository.directory.absolute()
    while not directory.exists():
        directory = directory.parent
    missing, free = sum(wanted.values()) - repository.bytes_here(wanted), shutil.disk_usage(directory).free
    if missing > free:
        raise FetchError(f"{missing / 1e9:.1f} GB are to be fetched and {directory} has {free / 1e9:.1f} GB free; "
                         f"{_other_place(repository)}")


def _other_place(repository: Repository) -> str:
    return f"make room, or name another place with --download-dir or {repository.cache_variable}"


@contextlib.contextmanager
def _watching(repository: Repository, report: Report | None) -> Iterator[dict[str, int]]:
    """Gives a dictionary for the names and bytes of what is wanted, once that is known. Versions of the clients tell of
    their progress each in another way; the disk tells the same of all."""
    wanted: dict[str, int] = {}
    if report is None:
        yield wanted
        return
    over = threading.Event()
    turn = threading.Lock()

    def tell() -> None:
        sizes = dict(wanted)
        report(repository.bytes_here(sizes) if sizes else 0, sum(sizes.values()))

    def follow() -> None:
        while True:
            with turn:
                if over.is_set():
                    return
                tell()
            over.wait(POLL_S)

    threading.Thread(target=follow, name="fetch-progress", daemon=True).start()
    try:
        yield wanted
        with turn:
            tell()
    finally:
        with turn:
            over.set()  # nothing is reported after this


def _explained(name: HubName, repository: Repository, error: Exception) -> ConfigError:
    """One line: which model, whether a token was sent, what to do."""
    kind = ConfigError if _is_final(error) else FetchError
    token = repository.token_variable
    sent = "a token was sent" if repository.sends_token() else "no token was sent"
    status = _status(error)
    number = next((e.errno for e in _chain(error) if isinstance(e, OSError) and e.errno is not None), None)
    if _is_offline():
        what = "it is not in the cache, and HF_HUB_OFFLINE forbids fetching; unset that, or copy the cache over"
    elif type(error).__name__ == "GatedRepoError":  # by name, since its module need not be here
        what = (f"its owner lets in only who asked, and {sent}; ask on its page, then set {token} to the token of the "
                "account that asked")
    elif status in (401, 403):  # a hub does not tell strangers whether there is such a name
        what = f"{sent}; check the name, and that {token} is the token of somebody who may read it"
    elif status == 404:
        what = f"{sent}; check the name and --revision"
    elif isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        what = "check the name"
    elif number in (errno.ENOSPC, errno.EDQUOT):
        what = f"the disk of {repository.directory} is full; {_other_place(repository)}"
    elif number in _NO_PLACE:
        what = f"{repository.directory} cannot be written; {_other_place(repository)}"
    else:
        what = "check the network (HTTPS_PROXY), and whether the hub is well"
    return kind(f"--model: {name} is no local path and could not be fetched; {what}, or give a directory "
                f"({type(error).__name__}: {_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _is_final(error: BaseException) -> bool:
    """Whether the same fetch would fail again: no such name or revision, no access, or the network not to be used."""
    if isinstance(error, json.JSONDecodeError):  # no hub speaks so: a proxy, or a page that asks to log in
        return False
    if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _NO_PLACE):
        return True
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    return _is_offline()


def _status(error: BaseException) -> int | None:
    """What the hub answered, if it did."""
    for each in _chain(error):
        for owner in (getattr(each, "response", None), each):
            status: Any = getattr(owner, "status_code", None)
            if isinstance(status, int):
                return status
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        failed: dict[str, BaseException] = getattr(each, "failed_files", {})  # of ModelScope's client
        each = each.__cause__ or next(iter(failed.values()), None)
