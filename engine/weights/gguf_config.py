"""Translates a GGUF file's metadata into the configuration that Hugging Face's config.json would hold.

Refuses to know torch and tensor data. Called by `quire.engine.weights.locate`; the tensors' names and layout are
`quire.engine.weights.gguf`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError, WeightError
from quire.engine.model_config import ModelConfig
from quire.engine.weights.gguf_metadata import GgufHeader, read_header
from quire.engine.weights.hf_config import model_config

# general.architecture -> Hugging Face's architecture. Mistral's files also say "llama".
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
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
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
}


def read(path: Path) -> ModelConfig:
    """The model of a GGUF file.

    Raises:
        ConfigError: the file is malformed, or describes a model that cannot be run.
    """
    try:
        header = read_header(path)
    except WeightError as error:
        raise ConfigError(str(error)) from error
    return model_config(path, "gguf", translate(path, header), _end_tokens(header.metadata), {})


def read_architectures() -> dict[str, str]:
    """general.architecture of files that are read, and Hugging Face's architecture that runs them."""
    return dict(ARCHITECTURES)


def _end_tokens(metadata: dict[str, Any]) -> list[int]:
    """Ids that end generation: those that the file marks, that of eos first, and those whose text is known for it."""
    marked = [metadata[key] for key in _MARKED_ENDS if key in metadata]
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens)
    named = [id for id, (text, type) in enumerate(zip(tokens, types)) if text in _END_TEXTS and type != _NORMAL]
    return list(dict.fromkeys([*marked, *named]))


def translate(path: Path, header: GgufHeader) -> dict[str, Any]:
    """The same facts under Hugging Face's names."""
    metadata, tensors = header.metadata, header.tensors
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ConfigError(f"{path}: GGUF architecture {arch!r} is not supported; supported are "
                          f"{', '.join(sorted(ARCHITECTURES))}")
    if metadata.get(f"{arch}.expert_count"):
        raise ConfigError(f"{path}: mixtures of experts are not supported ({arch}.expert_count is "
                          f"{metadata[f'{arch}.expert_count']})")
    hf: dict[str, Any] = {"architectures": [ARCHITECTURES[arch]], "hidden_act": "silu"}
    for name, key in _REQUIRED.items():
        if f"{arch}.{key}" not in metadata:
            raise ConfigError(f"{path}: {arch}.{key} is missing from the metadata")
        hf[name] = metadata[f"{arch}.{key}"]
    for name, key in _OPTIONAL.items():
        if f"{arch}.{key}" in metadata:
            hf[name] = metadata[f"{arch}.{key}"]
    hf["vocab_size"] = _vocab_size(path, header)
    hf["bos_token_id"] = metadata.get("tokenizer.ggml.bos_token_id")
    hf["torch_dtype"] = _FILE_DTYPES.get(metadata.get("general.file_type", -1), "float16")
    hf["tie_word_embeddings"] = "output.weight" not in tensors
    hf["attention_bias"] = "blk.0.attn_output.bias" in tensors
    hf["mlp_bias"] = "blk.0.ffn_down.bias" in tensors
    hf["rope_parameters"] = _rope_parameters(arch, metadata)
    return hf


def _vocab_size(path: Path, header: GgufHeader) -> int:
    """The embedding's rows: some files' vocab_size key counts only the tokens that have a text."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError(f"{path}: has no matrix token_embd.weight; is it a vocabulary-only file?")
    return embedding.shape[0]


def _rope_parameters(arch: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling is not here: it comes as the tensor rope_freqs.weight, which the model asks for."""
    rope: dict[str, Any] = {"rope_theta": metadata.get(f"{arch}.rope.freq_base", 10000.0)}
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    if kind != "none":
        rope["rope_type"] = kind
        rope["factor"] = metadata.get(f"{arch}.rope.scaling.factor")
        original = metadata.get(f"{arch}.rope.scaling.original_context_length")
        if original:
            rope["original_max_position_embeddings"] = original
    elif f"{arch}.rope.scale_linear" in metadata and metadata[f"{arch}.rope.scale_linear"] != 1.0:
        rope |= {"rope_type": "linear", "factor": metadata[f"{arch}.rope.scale_linear"]}
    return rope
