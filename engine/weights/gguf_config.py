"""Translates a GGUF file's metadata into the configuration that Hugging Face's config.json would hold.

What all architectures say alike is here; what only one says, and where its tensors differ, in `gguf_forms`. Refuses to
know torch. Called by `quire.engine.weights.locate`; `quire.engine.weights.gguf` reads the tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError, WeightError
from quire.engine.model_config import ModelConfig
from quire.engine.weights.gguf_forms import FORMS, LAYER_NORM, RMS, Described, Form
from quire.engine.weights.gguf_parts import GgufModel, read_model
from quire.engine.weights.hf_config import model_config
from quire.engine.weights.pooling_facts import gguf_pooling

# general.file_type of files that are not quantised; all others compute in half precision
_FILE_DTYPES = {0: "float32", 1: "float16", 32: "bfloat16"}
_MARKED_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Tokens that end a turn or a text in whatever model has them; many files mark only one of theirs.
_END_TEXTS = frozenset((
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|EOT|>", "<EOT>",
    "_<EOT>", "[EOT]", "[EOS]", "</s>", "<eos>", "<end_of_turn>", "<end_of_utterance>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>"))
_NORMAL = 1  # tokenizer.ggml.token_type of tokens that are just text
_REQUIRED = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
_EPS = {RMS: "attention.layer_norm_rms_epsilon", LAYER_NORM: "attention.layer_norm_epsilon"}
# What changes the result, and the values that the families here compute by
_ONLY: dict[str, tuple[Any, ...]] = {"attention.causal": (True,), "expert_gating_func": (0, 1),  # softmax, or unsaid
                                     "expert_weights_scale": (0.0, 1.0)}


def read(path: Path) -> ModelConfig:
    """The model of a GGUF file.

    Raises:
        ConfigError: the file is malformed, or describes a model that cannot be run.
    """
    try:
        model = read_model(path)
        metadata = model.header.metadata
        config = model_config(path, "gguf", translate(model), _end_tokens(metadata), {})
        return replace(config, pooling=gguf_pooling(path, metadata))
    except WeightError as error:
        raise ConfigError(str(error)) from error


def read_architectures() -> dict[str, tuple[str, ...]]:
    """general.architecture of files that are read, and Hugging Face's architectures that may run them."""
    return {name: (form.architecture, *form.others) for name, form in FORMS.items()}


def _end_tokens(metadata: dict[str, Any]) -> list[int]:
    """Ids that end generation: those that the file marks, that of eos first, and those whose text is known for it."""
    marked = [metadata[key] for key in _MARKED_ENDS if key in metadata]
    tokens, types = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if not isinstance(tokens, list):
        return marked
    if not isinstance(types, list):
        types = [0] * len(tokens)
    return marked + [id for id, (text, type) in enumerate(zip(tokens, types))
                     if type != _NORMAL and isinstance(text, str) and text in _END_TEXTS]


def translate(model: GgufModel) -> dict[str, Any]:
    """The same facts under Hugging Face's names."""
    arch = model.header.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in FORMS:
        raise ConfigError(f"{model.files[0]}: GGUF architecture {arch!r} is not supported; supported are "
                          f"{', '.join(sorted(FORMS))}")
    file = Described(arch, model)
    hf = {**_common(file, FORMS[arch]), **FORMS[arch].facts(file)}
    _refuse_unsupported(file, hf)
    return hf


def _common(file: Described, form: Form) -> dict[str, Any]:
    hf: dict[str, Any] = {"architectures": [form.architecture]}
    for name, key in {**_REQUIRED, form.eps: _EPS[form.eps]}.items():
        hf[name] = file.need(key)
    for name, key in _OPTIONAL.items():
        if (value := file.get(key)) is not None:
            hf[name] = value
    hf["vocab_size"] = _vocab_size(file)
    hf["bos_token_id"] = file.metadata.get("tokenizer.ggml.bos_token_id")
    file_type = file.metadata.get("general.file_type")
    hf["torch_dtype"] = _FILE_DTYPES.get(file_type, "float16") if isinstance(file_type, int) else "float16"
    hf["tie_word_embeddings"] = "output.weight" not in file.tensors
    hf["attention_bias"] = "blk.0.attn_output.bias" in file.tensors
    hf["mlp_bias"] = "blk.0.ffn_down.bias" in file.tensors
    hf["rope_parameters"] = file.rope()
    return hf


def _refuse_unsupported(file: Described, hf: dict[str, Any]) -> None:
    for key, known in _ONLY.items():
        if file.get(key, known[0]) not in known:
            raise ConfigError(f"{file.path}: {file.arch}.{key} is {file.get(key)!r}, which is not supported; supported "
                              f"are {', '.join(map(str, known))}")
    if file.get("expert_count") and "num_experts_per_tok" not in hf:
        raise ConfigError(f"{file.path}: mixtures of experts are not supported for this architecture "
                          f"({file.arch}.expert_count is {file.get('expert_count')})")
    sections = file.metadata.get(f"{file.arch}.rope.dimension_sections")
    if any(sections if isinstance(sections, list) else [sections]):
        raise ConfigError(f"{file.path}: {file.arch}.rope.dimension_sections splits the rotation by direction, as "
                          "models of images have it; that is not supported")


def _vocab_size(file: Described) -> int:
    """The embedding's rows: some files' vocab_size key counts only the tokens that have a text."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError(f"{file.path}: has no matrix token_embd.weight; is it a vocabulary-only file?")
    return embedding.shape[0]
