"""What a checkpoint says of its model, in Hugging Face's names whatever the file format was.

Built by `quire.engine.weights.hf_config` and `gguf_config`; read by everyone; imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from quire.engine.kv_groups import KVGroups, kv_groups
from quire.engine.model_facts.vision import VisionFacts
from quire.engine.model_registry import BASE_MODELS
from quire.engine.quantization_config import Quantization


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the model's embeddings are made, where its files say."""

    kind: str = "last"  # or "mean", of the hidden states behind the final norm
    normalize: bool = True  # to length 1
    # Lengths that a vector may be cut to (Matryoshka): only these, or with () any where `can_be_cut`.
    can_be_cut: bool = False
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The facts the engine itself needs; what only one family needs stays in `hf`."""

    path: str  # a directory (config.json, *.safetensors) or a .gguf file, of several parts the first
    file_format: str  # "hf" or "gguf"
    architecture: str  # "LlamaForCausalLM"
    dtype: str  # the checkpoint's own: "float32", "float16" or "bfloat16"
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    windows: tuple[int | None, ...] = ()  # of each layer: tokens that its attention sees; () where all see all
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()  # from generation_config.json where it says more than config.json
    hf: dict[str, Any] = field(default_factory=dict)  # the whole config.json (for GGUF: the same keys, translated)
    generation_defaults: dict[str, Any] = field(default_factory=dict)  # generation_config.json's sampling fields
    pooling: Pooling = Pooling()
    vision: VisionFacts | None = None  # None: it takes no images
    quantization: Quantization | None = None  # None: weights are floats, or a GGUF file's

    @property
    def is_base_model(self) -> bool:
        """Whether the architecture is one without a head, whose model makes embeddings alone."""
        return self.architecture in BASE_MODELS

    @property
    def kv_groups(self) -> KVGroups:
        return kv_groups(self.windows, self.num_layers)
