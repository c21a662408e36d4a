"""What no decoder of text is gets one line with name and reason, by its config.json as hubs have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.weights.locate import resolve_model

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "model_type": "llama"}
OF_STATES = r"has layers with a recurrent state \(%s\); that is not supported"

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "BertForMaskedLM": ({**SIZES, "model_type": "bert"}, "is an encoder, which sees its text whole"),
    "RobertaForCausalLM": ({**SIZES, "model_type": "roberta"}, "is an encoder, which sees its text whole"),
    "ModernBertForMaskedLM": ({**SIZES, "model_type": "modernbert"}, "is an encoder"),
    "T5ForConditionalGeneration": ({"d_model": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 96,
                                    "model_type": "t5", "is_encoder_decoder": True}, "has an encoder beside"),
    "WhisperForConditionalGeneration": ({"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "model_type":
                                         "whisper", "is_encoder_decoder": True}, "has an encoder beside its decoder"),
    "MambaForCausalLM": ({"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 96, "state_size": 16,
                          "conv_kernel": 4, "model_type": "mamba"}, OF_STATES % "state_size"),
    "RwkvForCausalLM": ({"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 96, "attention_hidden_size": 64,
                         "rescale_every": 6, "model_type": "rwkv"}, OF_STATES % "model_type rwkv"),
    "JambaForCausalLM": ({**SIZES, "attn_layer_period": 8, "mamba_d_state": 16, "model_type": "jamba"},
                         OF_STATES % "mamba_d_state"),
    "RecurrentGemmaForCausalLM": ({**SIZES, "block_types": ["recurrent", "recurrent", "attention"], "lru_width": 64,
                                   "model_type": "recurrent_gemma"}, OF_STATES % "lru_width"),
    "Qwen3NextForCausalLM": ({**SIZES, "full_attention_interval": 4, "linear_num_key_heads": 2,
                              "model_type": "qwen3_next"}, OF_STATES % "linear_num_key_heads"),
    "Lfm2ForCausalLM": ({**SIZES, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "model_type": "lfm2"},
                        OF_STATES % "conv"),
    "XLNetLMHeadModel": ({"d_model": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "attn_type": "bi", "mem_len": 0,
                          "model_type": "xlnet"}, "keeps a memory of hidden states"),
    "MiniCPM3ForCausalLM": ({**SIZES, "model_type": "minicpm3", "kv_lora_rank": 32, "qk_nope_head_dim": 64,
                             "qk_rope_head_dim": 32, "v_head_dim": 64}, "has keys of 96 numbers and values of 64"),
    "CLIPModel": ({"text_config": SIZES, "vision_config": SIZES, "model_type": "clip"}, "images or sound beside text"),
    "ViTForImageClassification": ({**SIZES, "image_size": 224, "model_type": "vit"},
                                  "has a head for ImageClassification, and none that goes on with a text"),
    "LlavaForConditionalGeneration": ({"text_config": TEXT, "vision_config": SIZES, "model_type": "llava",
                                       "image_token_index": 5}, "images or sound beside text .vision_config."),
    "LlamaForSequenceClassification": (TEXT, "has a head for SequenceClassification"),
    "CohereModel": ({**SIZES, "model_type": "cohere"}, "has no head that goes on with a text"),
    "TrOCRForCausalLM": ({**SIZES, "add_cross_attention": True, "model_type": "trocr"}, "cross attention"),
}
TAKEN: dict[str, dict[str, Any]] = {
    "CohereForCausalLM": {"model_type": "cohere"},
    "Starcoder2ForCausalLM": {"model_type": "starcoder2", "is_encoder_decoder": False, "add_cross_attention": False},
    "ModernBertDecoderForCausalLM": {"model_type": "modernbert-decoder"},
    "BertLMHeadModel": {"model_type": "bert", "is_decoder": True},
    "Ernie4_5ForCausalLM": {"model_type": "ernie4_5"},
    "GraniteMoeHybridForCausalLM": {"model_type": "granitemoehybrid", "mamba_d_state": 256,
                                    "layer_types": ["attention", "attention"]},
}


def read(path: Path, architecture: str, config: dict[str, Any]) -> str:
    (path / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    return resolve_model(EngineArgs(model=str(path))).architecture


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_is_no_decoder_is_refused_by_name_and_reason(architecture: str, tmp_path: Path) -> None:
    config, reason = REFUSED[architecture]
    with pytest.raises(ConfigError, match=rf"{architecture} .*{reason}") as told:
        read(tmp_path, architecture, config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("architecture", TAKEN)
def test_decoders_are_left_to_transformers(architecture: str, tmp_path: Path) -> None:
    assert read(tmp_path, architecture, {**SIZES, **TAKEN[architecture]}) == architecture
