"""A model in a GGUF file: its metadata and tensor table, what the configuration and the tokenizer make of them, and the
tensors as layers ask for them."""

from __future__ import annotations

from contextlib import closing, suppress

import gguf
import numpy as np

from quire.engine.errors import ConfigError, WeightError
from quire.engine.tokenizers import gguf_tokenizer
from quire.engine.weights import gguf_config
from quire.engine.weights.gguf import GgufCheckpoint
from quire.engine.weights.gguf_metadata import read_metadata
from tests.fuzz import scratch
from tests.fuzz.checkpoint_tensors import read_all

_WIDTH, _ROWS = 32, 8
_LAYER = {"attn_q": (_WIDTH, _WIDTH), "attn_k": (_WIDTH, _WIDTH), "attn_v": (_WIDTH, _WIDTH),
          "attn_output": (_WIDTH, _WIDTH), "ffn_gate": (64, _WIDTH), "ffn_up": (64, _WIDTH), "ffn_down": (_WIDTH, 64),
          "attn_norm": (_WIDTH,), "ffn_norm": (_WIDTH,)}
_NAMES = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", *(
    f"model.layers.0.{part}.weight" for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj", "input_layernorm", "post_attention_layernorm"))]


def seeds() -> list[bytes]:
    return [_model("llama", gguf.GGMLQuantizationType.F32), _model("qwen2", gguf.GGMLQuantizationType.Q8_0),
            _model("gemma3", gguf.GGMLQuantizationType.F16)]


def target(data: bytes) -> None:
    path = scratch.kept_folder(__name__) / "m.gguf"
    path.write_bytes(data)
    with suppress(ConfigError, WeightError):
        gguf_tokenizer.build(read_metadata(path), str(path))
    try:
        gguf_config.read(path)
    except ConfigError:
        return  # the tensors of such a file are never asked for
    with suppress(WeightError), closing(GgufCheckpoint(path)) as checkpoint:
        for name in _NAMES:
            with suppress(WeightError):
                read_all(checkpoint, [name])



def _model(arch: str, kind: gguf.GGMLQuantizationType) -> bytes:
    """A model of one layer, whose matrices are of this type."""
    path = scratch.kept_folder(__name__) / "seed.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_sliding_window(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(["a", "b", "ab", "c", "abc", "d", "<|im_end|>", "</s>"])
    writer.add_token_types([1] * 6 + [3] * 2)
    writer.add_token_merges(["a b", "ab c"])
    writer.add_eos_token_id(7)
    for name, shape in {"token_embd": (_ROWS, _WIDTH), "output_norm": (_WIDTH,),
                        **{f"blk.0.{name}": shape for name, shape in _LAYER.items()}}.items():
        values = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()
