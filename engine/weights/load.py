"""Builds the model: opens the checkpoint, lets layers pull their weights from it, checks that nothing was left over.

Refuses to know families and formats beyond their names. Called by `quire.engine.execution.model_runner`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch

from quire.engine.config import EngineConfig
from quire.engine.model_registry import family_of
from quire.engine.parallel import Parallel
from quire.engine.quantization_config import GGUF, SCHEMES, Quantization, stays_packed
from quire.engine.weights.checkpoint import Checkpoint, View
from quire.engine.weights.dummy import DummyCheckpoint
from quire.engine.weights.index import has_checkpoint
from quire.engine.weights.scheme import Schemes, is_kv_scale

if TYPE_CHECKING:
    from quire.engine.models.base import CausalLM  # above this module: models import weights

_log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
_PHASE = "loading weights"
_DEFAULT_STD = 0.02
_REPORTED_STEP = 0.01


def load_model(config: EngineConfig, parallel: Parallel, device: torch.device, dtype: torch.dtype,
               progress: Callable[[str, float], None]) -> CausalLM:
    """The model with this rank's weights on `device`.

    Raises:
        WeightError: the checkpoint does not fit the model; the message names the tensor.
        ConfigError: the model asks for something that is not supported.
    """
    model_class = _model_class(config.model.architecture, config.args.model_impl)
    checkpoint = _open(config)
    try:
        schemes = _schemes(config)
        view = View(checkpoint, device, dtype, _Counter(checkpoint.num_elements, progress), schemes=schemes,
                    stays_packed=stays_packed(device.type, config.args.quantization, config.model.file_format),
                    cpu_weights=config.args.cpu_weights)
        progress(_PHASE, 0.0)
        model: CausalLM = model_class(config.model, config.max_model_len, view, parallel)
        view.refuse_unread(lambda name: model.ignores(name) or is_kv_scale(name)
                           or (schemes is not None and schemes.ignores(name)))
    finally:
        checkpoint.close()
    progress(_PHASE, 1.0)
    if config.kv_type.startswith("float8"):
        _tell_of_scales(view)
    return model


def _tell_of_scales(view: View) -> None:
    if view.took(is_kv_scale):
        _log.info("the KV cache is in 8 bits", scales="the checkpoint's")
    else:
        _log.warning("the KV cache is in 8 bits, and the checkpoint has no scales for it", scales=1.0,
                     advice="compare replies with those of --kv-cache-dtype auto; of models whose keys are large, "
                            "fp8_e5m2 may be the better one")


def _model_class(architecture: str, model_impl: str) -> Any:
    family = family_of(architecture, model_impl)
    assert family is not None, "an unknown architecture is refused when its configuration is read"
    module, name = family.model.split(":")
    return getattr(importlib.import_module(f"quire.engine.models.{module}"), name)


def _schemes(config: EngineConfig) -> Schemes | None:
    stated = config.model.quantization
    if config.model.file_format == "gguf" and config.args.load_format != "dummy":
        stated = Quantization(GGUF)
    if stated is None:
        return None
    module, name = SCHEMES[stated.method].split(":")
    schemes: Schemes = getattr(importlib.import_module(f"quire.engine.quantization.{module}"), name)(stated.config)
    return schemes


def _open(config: EngineConfig) -> Checkpoint:
    path = Path(config.model.path)
    if config.args.load_format == "dummy":
        return DummyCheckpoint(config.args.seed, config.model.hf.get("initializer_range", _DEFAULT_STD))
    # The readers are imported late: each brings packages that the other does not need.
    if config.model.file_format == "gguf":
        from quire.engine.weights.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if config.args.load_format != "safetensors" and not has_checkpoint(path, "model.safetensors") \
            and has_checkpoint(path, "pytorch_model.bin"):
        from quire.engine.weights.pickled import PickledCheckpoint

        return PickledCheckpoint(path)
    from quire.engine.weights.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)


class _Counter:
    """Turns elements read into fractions, a hundred at most."""

    def __init__(self, total: int, progress: Callable[[str, float], None]) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._reported = 0.0

    def __call__(self, elements: int) -> None:
        self._done += elements
        fraction = min(self._done / self._total, 1.0) if self._total else 0.0
        if fraction >= self._reported + _REPORTED_STEP:
            self._reported = fraction
            self._progress(_PHASE, fraction)
