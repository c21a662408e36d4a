"""Any other decoder of transformers': by that library's own code, with our paged attention in its attention interface.

Slower than a family of ours: its layers are not fused, one GPU holds all of it, and no CUDA graphs. The flat batch goes
in as one sequence; what attends sees by `inputs` where sequences begin, and reads and writes our KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig
from quire.engine.models.base import CausalLM, KVCaches
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.kernels import ops
from quire.kernels.attention_spec import AttentionSpec

_NAME = "quire_paged"


class TransformersModel(CausalLM):
    ignorable = r"rotary_emb\.inv_freq$|\.(masked_)?bias$"
    can_be_captured = False

    def __init__(self, config: ModelConfig, max_model_len: int, view: View, parallel: Parallel) -> None:
        if parallel.size > 1 or parallel.stage.count > 1:
            raise ConfigError(f"--tensor-parallel-size, --pipeline-parallel-size: {config.architecture} runs by "
                              "transformers' code, which is not split over devices; use 1")
        self.stage = parallel.stage
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.dtype, self.device = view.dtype, view.device
        self._model = _without_weights(config, view.dtype)
        self._step = _Step()
        layers = set()
        for module in self._model.modules():
            if isinstance(index := getattr(module, "layer_idx", None), int):
                module.quire_step = self._step  # type: ignore[assignment]
                layers.add(index)
        self.num_layers, self.num_kv_heads, self.head_dim = config.num_layers, config.num_kv_heads, config.head_dim
        self.kv_groups = config.kv_groups
        if layers != set(range(config.num_layers)):
            raise ConfigError(f"{config.path}: {config.architecture} does not say which layer is which, or not all of "
                              "its layers attend; it cannot be run")
        _load(self._model, view)

    def forward(self, token_ids: torch.Tensor, inputs: AttentionInputs, kv_caches: KVCaches) -> torch.Tensor:
        step = self._step
        step.inputs, step.kv_caches, step.first_layer = inputs, kv_caches, self.num_layers - len(kv_caches)
        kept = slice(None) if inputs.last_tokens is None else inputs.last_tokens.long()
        hidden: torch.Tensor = self._model.base_model(
            input_ids=token_ids.long().unsqueeze(0), use_cache=False,
            position_ids=inputs.positions.long().unsqueeze(0)).last_hidden_state[0, kept]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return _logits(self._model, hidden)


class _Step:
    """What the attention interface gets by no argument: this step's inputs and caches."""

    def __init__(self) -> None:
        self.inputs: AttentionInputs | None = None
        self.kv_caches: KVCaches = []
        self.first_layer = 0  # that has a cache; those before are not asked for their results
        self._specs: dict[int, AttentionSpec] = {}

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None,
               options: dict[str, Any]) -> torch.Tensor:
        """q, k, v: [heads, tokens, head_dim], turned; returns [tokens, heads, head_dim]."""
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))
        if layer < self.first_layer:
            return q
        if layer not in self._specs:
            if v.shape[-1] != k.shape[-1]:
                raise ConfigError("keys and values of different widths are not supported")
            self._specs[layer] = AttentionSpec(
                q.shape[1], k.shape[1], q.shape[2], q.shape[2] ** -0.5 if scale is None else float(scale),
                window=options.get("sliding_window"), softcap=options.get("softcap") or 0.0,
                sinks=options.get("s_aux"))
        k_cache, v_cache = self.kv_caches[layer - self.first_layer]
        return ops.paged_attention(q, k_cache, v_cache, self.inputs, self._specs[layer], (k, v, None))


def _paged_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                     attention_mask: torch.Tensor | None, scaling: float | None = None, **options: Any
                     ) -> tuple[torch.Tensor, None]:
    """transformers' interface: [1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim]."""
    step: Any = module.quire_step
    return step.attend(module.layer_idx, query[0], key[0], value[0], scaling, options).unsqueeze(0), None


def _without_weights(config: ModelConfig, dtype: torch.dtype) -> Any:
    """transformers' model with parameters that have no memory yet; ConfigError says why there is none."""
    transformers.AttentionInterface.register(_NAME, _paged_attention)
    transformers.AttentionMaskInterface.register(_NAME, lambda *_, **__: None)  # what is seen is the kernels' business
    try:
        described = transformers.AutoConfig.from_pretrained(config.path, trust_remote_code=False)
        kind: Any = transformers.AutoModelForCausalLM._model_mapping[type(described)]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{config.path}: {config.architecture} is neither a family of Quire's nor a decoder of transformers "
            f"{transformers.__version__}. If it comes with code of its own: Quire runs no code out of checkpoints, "
            "with --trust-remote-code neither") from error
    if not kind.is_backend_compatible():
        raise ConfigError(f"{config.path}: transformers' code of {config.architecture} does not let its attention be "
                          "replaced, so it cannot be run")
    with _parameters_without_memory():
        return kind._from_config(described, attn_implementation=_NAME, dtype=dtype).eval()


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _load(model: Any, view: View) -> None:
    """Parameters from the view, each under its own name; tied ones once."""
    model.tie_weights()
    taken: dict[int, nn.Parameter] = {}
    prefix = f"{model.base_model_prefix}."
    for module_name, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in taken:
                full = f"{module_name}.{name}" if module_name else name
                stored = full if view.has(full) else full.removeprefix(prefix)
                taken[id(parameter)] = nn.Parameter(view.take(stored, tuple(parameter.shape)), requires_grad=False)
            module._parameters[name] = taken[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to(view.device)


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """[n, hidden] -> [n, vocab]: what the family does behind its last norm."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    config = model.config
    if scale := getattr(config, "logit_scale", None):  # Cohere's
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite's
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma's
        logits = torch.tanh(logits / cap) * cap
    return logits
