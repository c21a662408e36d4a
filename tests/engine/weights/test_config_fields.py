"""config.json with wrong and extreme values: every one ends in a line that names the field, or in sound facts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quire.engine.config import LONGEST_UNASKED, EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.kv_groups import kv_groups
from quire.engine.model_config import ModelConfig
from quire.engine.model_facts import fields
from quire.engine.model_registry import FAMILIES
from quire.engine.weights.hf_config import model_config
from quire.engine.weights.locate import resolve_model
from tests.engine.models.families import FULL, LLAMA3, LONGROPE, SLIDING, YARN
from tests.engine.models.paging import load

SIZES = {"vocab_size": 96, "intermediate_size": 80, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "sliding_window": 20, "use_sliding_window": True,
         **dict.fromkeys(("hidden_size", "n_embd", "n_embed", "d_model"), 64),
         **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 3),
         **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4)}
ODD: list[Any] = [0, -1, 7, "x", "4", 1.5, 10**9, 10**12, [], [1], {}, {"a": 1}, True, False, None, float("nan"),
                  float("inf"), [FULL], ["chunked_attention"] * 3, [SLIDING] * 3, [0] * 9, {FULL: 5}, {FULL: YARN},
                  {SLIDING: YARN}, {FULL: YARN, SLIDING: {}}, {**YARN, "factor": "x"}, {**YARN, "factor": 1e300},
                  {**YARN, "rope_theta": 1}, {**LLAMA3, "low_freq_factor": 4.0}, {**LONGROPE, "short_factor": ["x"]},
                  {"rope_type": ["yarn"]}]
NAMES = [*fields._COUNTS, *fields._RULES, "bos_token_id", "eos_token_id", "torch_dtype", "text_config", "n_inner",
         "layer_windows", "local_rope_parameters"]


def facts(architecture: str, **changes: Any) -> ModelConfig:
    hf = {"architectures": [architecture], **SIZES, **changes}
    return model_config(Path("model"), "hf", hf, hf.get("eos_token_id"), {}, "quire")


def outcome(architecture: str, name: str, value: Any) -> tuple[ModelConfig | None, str]:
    try:
        return facts(architecture, **{name: value}), ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_any_value_of_any_field_is_refused_in_a_line_or_makes_sound_facts(architecture: str) -> None:
    refused = 0
    for name in NAMES:
        for value in ODD:
            model, refusal = outcome(architecture, name, value)
            if model is None:
                assert re.fullmatch("model: .{10,400}", refusal), refusal
                refused += 1
                continue
            assert model.num_heads % model.num_kv_heads == 0, (name, value)
            assert len(model.windows) in (0, model.num_layers), (name, value)
            assert all(window is None or window > 0 for window in model.windows), (name, value)
            assert all(type(id) is int and id >= 0 for id in model.eos_token_ids), (name, value)
            assert 0 < model.max_position_embeddings < 2**31, (name, value)
            assert kv_groups(model.windows, model.num_layers).windows
    assert refused > 600


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 4096, is 1000000000"),
    ({"sliding_window": 0}, "sliding_window must be a positive integer, is 0"),
    ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ({"layer_types": [SLIDING] * 2}, "layer_types lists 2 layers, and num_hidden_layers is 3"),
    ({"layer_types": ["chunked_attention"] * 3}, "layer_types must be a list of 'full_attention' and 'sliding_att"),
    ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "type 'llama3': factor must be a number above 0"),
    ({"rope_theta": float("nan")}, "rope_theta must be a positive number, .* at most, is nan"),
    ({"rope_parameters": {FULL: YARN, SLIDING: YARN}}, "rope_parameters holds an object full_attention, as of models"),
    ({"eos_token_id": [2, None]}, r"eos_token_id must be a token id or a list of them, is \[2, None\]"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, is 'false'"),
    ({"hidden_act": ["silu"]}, r"hidden_act must be a text, is \['silu'\]"),
    ({"intermediate_size": None}, "intermediate_size must be a positive integer, is missing"),
    ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names, is 'LlamaForCausalLM'"),
])
def test_the_field_is_named_with_its_value_and_what_it_may_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        facts("LlamaForCausalLM", **changes)


def test_a_gemma_whose_tokens_see_those_behind_them_is_refused() -> None:
    for architecture in ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"):
        assert facts(architecture, use_bidirectional_attention=False).head_dim == 256
        with pytest.raises(ConfigError, match="use_bidirectional_attention is set, by which tokens see those behind"):
            facts(architecture, use_bidirectional_attention=True)


def test_null_says_as_little_as_nothing() -> None:
    changes = dict.fromkeys(("attention_multiplier", "rms_norm_eps", "head_dim", "rope_theta", "bos_token_id"))
    assert facts("GraniteForCausalLM", **changes).hf == facts("GraniteForCausalLM").hf


def test_a_context_of_any_length_that_nobody_asked_for_makes_no_tables() -> None:
    model = facts("LlamaForCausalLM", max_position_embeddings=2**31 - 1)
    assert EngineArgs().model_len(model) == LONGEST_UNASKED
    assert EngineArgs(max_model_len=LONGEST_UNASKED + 1).model_len(model) == LONGEST_UNASKED + 1


def test_a_negative_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **SIZES,
                                                      "eos_token_id": -1, "bos_token_id": -1}))
    model = resolve_model(EngineArgs(model=str(tmp_path)))
    assert (model.eos_token_ids, model.bos_token_id) == ((), None)


@pytest.mark.parametrize(("architecture", "changes", "message"), [
    ("LlamaForCausalLM", {"head_dim": 7}, "7 of a head's numbers are to be turned by positions"),
    ("Phi3ForCausalLM", {"rope_scaling": {**LONGROPE, "long_factor": [1.0]}},
     "long_factor holds 1 numbers; it must be 8"),
    ("GPTJForCausalLM", {"rotary_dim": 18}, "rotary_dim 18 is more than a head has, 16"),
    ("MixtralForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 3}, "per_tok 3 is more than the 2 exp"),
    ("MixtralForCausalLM", {"num_local_experts": None}, "num_local_experts is missing"),
    ("Ministral3ForCausalLM", {"rope_parameters": {"rope_theta": 1e4, "llama_4_scaling_beta": 0.1}},
     "lacks original_max_position_embeddings"),
])
def test_what_would_break_at_the_first_request_is_said_at_the_start(architecture: str, changes: dict[str, Any],
                                                                    message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], **SIZES, **changes}))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, load_format="dummy")


@pytest.mark.parametrize(("content", "message"), [
    ('{"temperature": "hot"}', "temperature must be a number, got 'hot'.*: --generation-config vllm"),
    ('{"top_p": 1.5}', r"top_p must be in \(0, 1\], got 1.5.*: --generation-config vllm"),
    ("[" * 200_000, "cannot be read"),
])
def test_what_every_request_would_be_refused_for_is_said_at_the_start(content: str, message: str, tmp_path: Path
                                                                      ) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **SIZES}))
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {message}"):
        resolve_model(EngineArgs(model=str(tmp_path)))
    if "vllm" in message:
        assert resolve_model(EngineArgs(model=str(tmp_path), generation_config="vllm")).generation_defaults == {}
