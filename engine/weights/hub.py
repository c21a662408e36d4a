"""Models of a hub on this disk: the cached one, or a download that can tell how far it is.

Refuses to know what the files say. Called by `locate`; the hub clients are imported late, a local model needs neither.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError, FetchError

Report = Callable[[int, int], None]  # bytes that are here, and all; 0 and 0 while that is not known

POLL_S = 0.25
LIST_S = 10.0
# What a served checkpoint is made of; repositories also hold the same weights in other formats.
_FETCHED = ["*.json", "*.jinja", "*.safetensors", "*.model", "tokenizer.model.*", "merges.txt", "vocab.txt"]
_NOT_FETCHED = ["original/*", "consolidated*", "onnx/*"]
_UNFINISHED = ".incomplete"  # how the client names a file that it still writes


def is_hub_id(name: str) -> bool:
    """Whether `name`, which is no path here, may be a hub's: organisation/name."""
    return not (Path(name).is_absolute() or name.startswith((".", "~")) or name.endswith(".gguf")
                or name.count("/") != 1)


def snapshot(name: str, revision: str | None, download_dir: str | None, report: Report | None = None) -> str:
    """The directory of the model's files; `report` is told a few times a second what of them is here.

    Raises:
        ConfigError: there is no such model for us; FetchError where another try may do better.
    """
    try:
        if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
            from modelscope.hub.snapshot_download import snapshot_download as from_modelscope

            return str(from_modelscope(name, revision=revision, cache_dir=download_dir, allow_patterns=_FETCHED,
                                       ignore_patterns=_NOT_FETCHED))
        from huggingface_hub import snapshot_download

        with _watching(name, revision, download_dir, report) if report is not None else contextlib.nullcontext():
            return str(snapshot_download(name, revision=revision, cache_dir=download_dir, allow_patterns=_FETCHED,
                                         ignore_patterns=_NOT_FETCHED))
    except ImportError as error:
        raise ConfigError(f"--model: fetching {name}: {error}; install that package or give a directory") from error
    except Exception as error:  # the clients raise their own, their HTTP library's and OSError
        raise _explained(name, error) from error


def drop_unfinished() -> None:
    """Delete the files that this process is writing, which no later fetch goes on with. To be called before an end
    that is not orderly."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            path = os.readlink(descriptor)
            if path.endswith(_UNFINISHED):
                os.unlink(path)


def _explained(name: str, error: Exception) -> ConfigError:
    kind = ConfigError if _is_final(error) else FetchError
    status = _status(error)
    if status in (401, 403):  # a hub does not tell strangers whether there is such a name
        what = "check the name, and that HF_TOKEN is the token of somebody who may read it"
    elif _is_forbidden(error):
        what = "it is not in the cache, and HF_HUB_OFFLINE forbids fetching; unset that, or copy the cache over"
    elif status == 404:
        what = "check the name and --revision"
    else:
        what = "check the network, and whether the hub is well"
    first = (str(error).splitlines() or [""])[0]
    return kind(f"--model: {name} is no local path and could not be fetched; {what}, or give a directory "
                f"({type(error).__name__}: {first})")


@contextlib.contextmanager
def _watching(name: str, revision: str | None, download_dir: str | None, report: Report) -> Iterator[None]:
    """Versions of the client tell of their progress each in another way; the disk tells the same of all."""
    over = threading.Event()
    turn = threading.Lock()
    seen: list[tuple[Path, dict[str, int]]] = []  # once the hub has said what there is

    def tell() -> None:
        if seen:
            blobs, sizes = seen[0]
            report(_bytes_here(blobs, sizes), sum(sizes.values()))
        else:
            report(0, 0)

    def follow() -> None:
        tell()
        seen.append((_blobs(name, download_dir), _sizes(name, revision)))
        while not over.wait(POLL_S):
            with turn:
                if not over.is_set():
                    tell()

    # Not waited for: it may still wait for the hub.
    threading.Thread(target=follow, name="fetch-progress", daemon=True).start()
    try:
        yield
        with turn:
            tell()
    finally:
        with turn:
            over.set()  # nothing is reported after this, whatever the thread waits for


def _sizes(name: str, revision: str | None) -> dict[str, int]:
    """Bytes of each blob that is wanted; nothing where the hub does not say: the fetch itself will report why."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # it re-exports so

    try:
        files = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=LIST_S).siblings or []
    except Exception:
        return {}
    wanted = filter_repo_objects(files, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED,
                                 key=lambda file: str(file.rfilename))
    return {str(file.lfs.sha256 if file.lfs else file.blob_id): int(file.size or 0) for file in wanted}


def _blobs(name: str, download_dir: str | None) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(download_dir or HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}" / "blobs"


def _bytes_here(blobs: Path, sizes: dict[str, int]) -> int:
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for file in os.scandir(blobs):
            blob = file.name.partition(".")[0]
            with contextlib.suppress(OSError):  # it was just moved to its own name
                found[blob] = max(found.get(blob, 0), file.stat().st_size)
    return sum(min(size, found.get(blob, 0)) for blob, size in sizes.items())


def _is_final(error: BaseException | None) -> bool:
    """Whether the same fetch would fail again: no such name or revision, no access, or the network not to be used."""
    if isinstance(error, (ValueError, PermissionError)):
        return True
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    return _is_forbidden(error)


def _is_forbidden(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__name__ in ("OfflineModeIsEnabled", "NotExistError"):  # Hugging Face's, ModelScope's
            return True
        error = error.__cause__
    return False


def _status(error: BaseException | None) -> int | None:
    """What the hub answered, if it did."""
    while error is not None:
        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None
