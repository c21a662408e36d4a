"""Other decoders of transformers': by that library's own code, where its attention can be replaced by ours (Cohere,
Starcoder2, Phi, EXAONE 4; not StableLM, CodeGen, DeepSeek).

Slower than a family of ours: its layers are not fused, one GPU holds all of it, and no CUDA graphs. The flat batch goes
in as one sequence; what attends sees by `inputs` where sequences begin, and reads and writes our KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from torch import nn

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.errors import ConfigError, WeightError
from quire.engine.model_config import ModelConfig
from quire.engine.models.base import CausalLM, KVCaches
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.kernels import ops
from quire.kernels.attention_spec import AttentionSpec

_NAME = "quire_paged"
# What attention is asked for that changes nothing here, or that `_spec` heeds.
_OPTIONS = frozenset(("dropout", "is_causal", "sliding_window", "softcap", "s_aux", "position_ids", "use_cache",
                      "output_attentions", "output_hidden_states", "return_dict", "cache_position"))
_max_len_of_trial: ContextVar[int | None] = ContextVar("max_len_of_trial", default=None)


class TransformersModel(CausalLM):
    ignorable = r"rotary_emb\.inv_freq$|\.(masked_)?bias$"
    can_be_captured = False

    def __init__(self, config: ModelConfig, max_model_len: int, view: View, parallel: Parallel) -> None:
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
        self.num_layers = config.num_layers
        self.kv_groups = config.kv_groups
        if layers != set(range(config.num_layers)):
            raise ConfigError(f"{config.path}: {config.architecture} does not say which layer is which, or not all of "
                              "its layers attend; it cannot be run")
        _load(self._model, view)
        self._refuse_what_comes_out_wrong(config, max_model_len)

    @torch.inference_mode()
    def _refuse_what_comes_out_wrong(self, config: ModelConfig, max_model_len: int) -> None:
        """Raises ConfigError. Two tokens go through with attention left out: what the family's code asks of attention,
        and what it does beside it, is seen before anybody waits for an answer."""
        code, last = f"{config.path}: transformers' code of {config.architecture}", self.vocab_size - 1

        def trial(module: Any, first: int, positions: list[int], mask_len: int | None) -> Any:
            tokens, places = torch.tensor([[[first, last]], [positions]], device=self.device)
            with self._step.trial(mask_len):
                return module(input_ids=tokens, position_ids=places, use_cache=False)

        try:
            body = self._model.base_model
            turned = []
            for place in (2, max(2, max_model_len - 1)):
                trial(body, 0, [1, place], None)
                turned.append(self._step.first_keys[0])
            one, other = (trial(body, first, [0, 1], max_model_len).last_hidden_state[0, 1] for first in (0, last // 2))
            theirs = trial(self._model, 0, [0, 1], max_model_len).logits[0, 1]
            ours = self.logits(one)
        except ConfigError as error:
            raise ConfigError(f"{code} {error}; that is not supported") from error
        except Exception as error:  # whatever a family's code runs into
            raise ConfigError(f"{code} does not run on another attention than its own: {type(error).__name__}: "
                              f"{error}") from error
        for is_wrong, what in (
                (len(self._step.specs) < self.num_layers, "has layers that do not attend"),
                (not _are_close(one, other), "lets tokens see each other outside of attention too"),
                (not _are_close(ours, theirs), "does more behind its last layer than is known here"),
                (not torch.equal(*turned), ("turns each token by how long the sequences beside it are "
                                             "(ask for a --max-model-len that it was first trained on)"))):
            if is_wrong:
                raise ConfigError(f"{code} {what}; that is not supported")
        self.num_kv_heads, self.head_dim = self._step.cached

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
        self.cached = 0, 0  # KV heads and their width, from the trial: config.json's are not always what is meant
        self.inputs: AttentionInputs | None = None
        self.kv_caches: KVCaches = []
        self.first_layer = 0  # that has a cache; those before are not asked for their results
        self.specs: dict[int, AttentionSpec] = {}  # of each layer, from the trial
        self.first_keys = torch.empty(0)  # those of the trial's first layer, turned
        self._is_trial = False

    @contextmanager
    def trial(self, max_model_len: int | None) -> Iterator[None]:
        """Within it layers tell what their attention is, and none attends. None: masks are not looked at."""
        self.specs, self._is_trial = {}, True
        token = _max_len_of_trial.set(max_model_len)
        try:
            yield
        finally:
            _max_len_of_trial.reset(token)
            self._is_trial = False

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None,
               scale: float | None, options: dict[str, Any]) -> torch.Tensor:
        """q, k, v: [heads, tokens, head_dim], turned; returns [tokens, heads, head_dim]."""
        # Not contiguous(), which leaves one token's strides as they are, where K's may differ from V's.
        q, k, v = (x.transpose(0, 1).clone(memory_format=torch.contiguous_format) for x in (q, k, v))
        if self._is_trial:
            if layer in self.specs:
                raise ConfigError("attends more than once in a layer")
            if not self.specs:
                self.first_keys = k
            if self.specs and k.shape[1:] != self.cached:
                raise ConfigError(f"has layers with {k.shape[1]} KV heads of {k.shape[2]} numbers, and others with "
                                  f"{self.cached[0]} of {self.cached[1]}")
            self.cached = k.shape[1], k.shape[2]
            self.specs[layer] = _spec(q, k, v, mask, scale, options)
        if self._is_trial or layer < self.first_layer:
            return q
        k_cache, v_cache = self.kv_caches[layer - self.first_layer]
        return ops.paged_attention(q, k_cache, v_cache, self.inputs, self.specs[layer], (k, v, None))


def _spec(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None,
          options: dict[str, Any]) -> AttentionSpec:
    """Raises ConfigError for what our attention does not do."""
    if v.shape[-1] != k.shape[-1]:
        raise ConfigError(f"has keys of {k.shape[-1]} numbers and values of {v.shape[-1]}")
    unknown = [name for name, value in options.items() if name not in _OPTIONS and value not in (None, False)]
    if unknown:
        raise ConfigError(f"asks for attention with {', '.join(unknown)}")
    if mask is None and not options["is_causal"]:
        raise ConfigError("lets tokens see those behind them")
    if mask is not None and not hasattr(mask, "quire_window"):
        raise ConfigError("makes a mask of its own for attention")
    # Whose window the mask does not say, that of the mask counts: transformers' own attention goes by nothing else.
    return AttentionSpec(
        q.shape[1], k.shape[1], q.shape[2], q.shape[2] ** -0.5 if scale is None else float(scale),
        window=None if mask is None else mask.quire_window, softcap=options.get("softcap") or 0.0,
        sinks=options.get("s_aux"))


def _paged_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                     attention_mask: torch.Tensor | None, scaling: float | None = None, **options: Any
                     ) -> tuple[torch.Tensor, None]:
    """transformers' interface: [1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim]."""
    step: Any = module.quire_step
    if options.get("is_causal") is None:
        options["is_causal"] = getattr(module, "is_causal", True)
    attended = step.attend(module.layer_idx, query[0], key[0], value[0], attention_mask, scaling, options)
    return attended.unsqueeze(0), None


def _stated_mask(*, mask_function: Any, local_size: int | None = None, device: Any = None, **_: Any
                 ) -> torch.Tensor | None:
    """transformers' interface: no mask, as what is seen is the kernels' business. In a trial one that says its window.

    Raises ConfigError for a mask that lets see other tokens than those before, or than a window does.
    """
    max_model_len = _max_len_of_trial.get()
    if max_model_len is None:
        return None
    edges = (0, 1, 2, *(range(local_size - 1, local_size + 2) if local_size else ()), 2 * (local_size or 0),
             max_model_len - 1)
    places = torch.tensor(sorted({edge for edge in edges if 0 <= edge < max_model_len}))
    queries, keys = places.unsqueeze(1), places.unsqueeze(0)
    expected = (keys <= queries) & (keys > queries - (local_size or max_model_len))
    nothing = torch.zeros((), dtype=torch.long)
    if not torch.equal(mask_function(nothing, nothing, queries, keys).expand(expected.shape), expected):
        raise ConfigError("lets tokens see others than those before them, or than those in a sliding window")
    mask: Any = torch.zeros(1, 1, 1, 1, device=device)
    mask.quire_window = local_size
    return mask  # type: ignore[no-any-return]


def _are_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To within what rounding makes of another order."""
    a, b = a.float(), b.float()
    return torch.allclose(a, b, rtol=0, atol=0.02 * float(a.abs().nan_to_num().max()), equal_nan=True)


def _without_weights(config: ModelConfig, dtype: torch.dtype) -> Any:
    """transformers' model with parameters that have no memory yet; ConfigError says why there is none."""
    transformers.AttentionInterface.register(_NAME, _paged_attention)
    transformers.AttentionMaskInterface.register(_NAME, _stated_mask)
    try:
        described = transformers.AutoConfig.from_pretrained(config.path, trust_remote_code=False)
        kind: Any = transformers.AutoModelForCausalLM._model_mapping[type(described)]
    except Exception as error:  # of several libraries, by what is wrong with the file
        raise ConfigError(
            f"{config.path}: {config.architecture} is neither a family of Quire's nor a decoder of transformers "
            f"{transformers.__version__}. If it comes with code of its own: Quire runs no code out of checkpoints, "
            "with --trust-remote-code neither") from error
    if not kind.is_backend_compatible():
        raise ConfigError(f"{config.path}: transformers' code of {config.architecture} does not let its attention be "
                          "replaced, so it cannot be run")
    try:
        with _parameters_without_memory():
            return kind._from_config(described, attn_implementation=_NAME, dtype=dtype).eval()
    except Exception as error:  # whatever a family's code makes of its config.json
        raise ConfigError(f"{config.path}: transformers' code of {config.architecture} cannot be made of its "
                          f"config.json: {type(error).__name__}: {error}") from error


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
    """Parameters from the view, each under its own name; tied ones once. Raises WeightError before any is read."""
    model.tie_weights()
    taken: dict[int, nn.Parameter] = {}
    prefix = f"{model.base_model_prefix}."

    def stored(name: str) -> str:
        return name if view.has(name) else name.removeprefix(prefix)

    for name, parameter in model.named_parameters():
        try:
            view.require(stored(name), tuple(parameter.shape))
        except WeightError as error:
            raise WeightError(f"{error}; transformers gives new names and shapes to some families' tensors as it reads "
                              "them (to experts, for one), which Quire does not do") from None
    for module_name, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in taken:
                tensor = view.take(stored(f"{module_name}.{name}".lstrip(".")), tuple(parameter.shape))
                taken[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
            module._parameters[name] = taken[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is None:
                continue
            module._buffers[name] = buffer = buffer.to(view.device)
            full = stored(f"{module_name}.{name}".lstrip("."))
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point() and view.has(full):
                view.take(full, tuple(buffer.shape), out=buffer)


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
