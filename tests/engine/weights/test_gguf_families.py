"""A GGUF file computes what the checkpoint does that it was converted from: every architecture that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.weights.checkpoint import View
from quire.engine.weights.gguf import GgufCheckpoint
from quire.engine.weights.gguf_forms import FORMS
from quire.engine.weights.locate import resolve_model
from quire.engine.weights.safetensors import SafetensorsCheckpoint
from quire.engine.weights.size import weight_bytes
from tests.engine.models import tiny
from tests.engine.models.families import CASES, FULL, MINISTRAL3, NEOX, QWEN3_MOE, SLIDING
from tests.engine.models.paging import PagedRun, load
from tests.engine.weights.converted import CONVERTERS, Q8_0, convert

PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(75)]
# Files do not say how Gemma scales scores; this is what llama.cpp supposes.
GEMMA = {"pad_token_id": 0, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 20}
GEMMA3 = {**GEMMA, "num_hidden_layers": 6, "final_logit_softcapping": 2.0,
          "rope_parameters": {FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                              SLIDING: {"rope_type": "default", "rope_theta": 1e4}}}
AS_THEY_ARE = ("llama", "llama-biases", "llama-llama3-rope", "llama-linear-rope", "mistral", "mixtral",
               "qwen2-tied-yarn", "qwen3", "phi3-longrope", "glm4", "olmo2", "olmo3", "granite", "gemma",
               "gpt2", "gpt-neox", "falcon-7b", "falcon-40b", "falcon-11b", "bloom-five-heads", "mpt-five-heads")
# Where a shape of the families' table does not survive the conversion, one that does.
CONVERTED: dict[str, tuple[str, dict[str, Any]]] = {
    **{case: CASES[case] for case in AS_THEY_ARE},
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA3),
    "gpt-bigcode": ("gpt_bigcode", {}),
    "gpt-neox-serial": ("gpt_neox", {"rope_parameters": NEOX, "use_parallel_residual": False}),
    "ministral3": ("ministral3", {"pad_token_id": 0, "head_dim": 16,
                                  "rope_parameters": {**MINISTRAL3, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "phi3-window": ("phi3", {"pad_token_id": 0, "sliding_window": 20}),
    "qwen3-moe": ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": True}),
    "smollm3": ("smollm3", {"pad_token_id": 0, "num_hidden_layers": 4}),
}


def logits_of(file: Path) -> torch.Tensor:
    return PagedRun(load(file), 1, 128).step({0: PROMPT})[0]


@pytest.mark.parametrize("case", CONVERTED)
def test_logits_of_the_file_equal_those_of_the_checkpoint(case: str, tmp_path: Path) -> None:
    family, config = CONVERTED[case]
    model = tiny.write(tmp_path, family, **config)
    convert(tmp_path, model, tmp_path / "m.gguf")
    torch.testing.assert_close(logits_of(tmp_path / "m.gguf"), tiny.logits(model, PROMPT), atol=1e-4, rtol=1e-4)


def test_baichuan_is_llama_whose_q_k_and_v_are_one_tensor_to_us_alone(tmp_path: Path) -> None:
    """The converter takes W_pack apart: what it writes is what it writes of Llama. The 7B models have 32 layers."""
    model = tiny.write(tmp_path, "llama", num_key_value_heads=4, num_hidden_layers=32)
    convert(tmp_path, model, tmp_path / "m.gguf", "baichuan")
    torch.testing.assert_close(logits_of(tmp_path / "m.gguf"), tiny.logits(model, PROMPT), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("case", ["llama-biases", "glm4"])
def test_q_k_and_v_may_be_one_tensor_of_any_architecture(case: str, tmp_path: Path) -> None:
    family, config = CONVERTED[case]
    model = tiny.write(tmp_path, family, **config)
    convert(tmp_path, model, tmp_path / "m.gguf", fuse_qkv=True)
    torch.testing.assert_close(logits_of(tmp_path / "m.gguf"), tiny.logits(model, PROMPT), atol=1e-4, rtol=1e-4)


def test_every_architecture_that_is_read_is_tested() -> None:
    assert FORMS.keys() == {CONVERTERS[family].arch for family, _ in CONVERTED.values()} | {"baichuan"}


@pytest.mark.parametrize("case", ["mixtral", "falcon-40b"])
def test_quantised_rows_keep_their_order(case: str, tmp_path: Path) -> None:
    family, config = CONVERTED[case]
    model = tiny.write(tmp_path, family, **config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and weight.shape[-1] % 32 == 0:  # to what quantisation leaves of them
                rounded = gguf.dequantize(gguf.quantize(weight.numpy(), Q8_0), Q8_0)
                assert not np.array_equal(rounded, weight.numpy())
                weight.copy_(torch.from_numpy(rounded))
    model.save_pretrained(tmp_path)
    convert(tmp_path, model, tmp_path / "m.gguf", kind=Q8_0)
    torch.testing.assert_close(logits_of(tmp_path / "m.gguf"), tiny.logits(model, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("case", "name", "shape", "part"), [
    ("gpt2", "transformer.h.1.attn.c_attn.weight", (192, 64),
     {"rows": slice(64, 128), "columns": slice(16, 48), "transposed": True}),
    ("falcon-40b", "transformer.h.1.self_attention.query_key_value.weight", (128, 64), {"rows": slice(48, 96)}),
    ("gpt-neox", "gpt_neox.layers.1.attention.query_key_value.bias", (192,), {"rows": slice(96, 144)}),
    ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w2.weight", (64, 80), {"columns": slice(40, 80)}),
])
def test_a_ranks_part_of_a_tensor_is_the_checkpoints(case: str, name: str, shape: tuple[int, ...], part: dict[str, Any],
                                                     tmp_path: Path) -> None:
    family, config = CONVERTED[case]
    convert(tmp_path, tiny.write(tmp_path, family, **config), tmp_path / "m.gguf")
    parts = [View(checkpoint, torch.device("cpu"), torch.float32).take(name, shape, **part)
             for checkpoint in (GgufCheckpoint(tmp_path / "m.gguf"), SafetensorsCheckpoint(tmp_path))]
    assert torch.equal(*parts)


def cut(directory: Path, model: PreTrainedModel, tensors_a_file: int) -> list[Path]:
    """The parts of the checkpoint there."""
    (directory / "cut").mkdir()
    convert(directory, model, directory / "cut" / "m.gguf", tensors_a_file=tensors_a_file)
    return sorted((directory / "cut").glob("*.gguf"))


def test_parts_load_as_one_by_the_first_or_their_directory(tmp_path: Path) -> None:
    model = tiny.write(tmp_path, "llama")
    convert(tmp_path, model, tmp_path / "m.gguf")
    parts = cut(tmp_path, model, 12)
    assert [part.name for part in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for place in (parts[0], parts[0].parent):
        torch.testing.assert_close(logits_of(place), tiny.logits(model, PROMPT), atol=1e-4, rtol=1e-4)
    sizes = [weight_bytes(resolve_model(EngineArgs(model=str(path))), "float32")
             for path in (tmp_path / "m.gguf", parts[0])]
    assert sizes[0] == sizes[1] > 0


def test_a_part_that_is_missing_or_another_models_is_named(tmp_path: Path) -> None:
    first, second, third = cut(tmp_path / "one", tiny.write(tmp_path / "one", "llama"), 12)
    others = cut(tmp_path / "other", tiny.write(tmp_path / "other", "qwen2"), 14)

    def refusal(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            resolve_model(EngineArgs(model=str(path)))
        return str(caught.value)

    assert f"{second}: is not the first part of its model; name {first.name}" in refusal(second)
    kept = second.read_bytes()
    for wrong, key in ((third, "split.no is 2, not 1"), (others[1], "split.tensors.count is 39, not 30")):
        second.write_bytes(wrong.read_bytes())
        assert f"{second}: is no part of {first.name}: its {key}" in refusal(first)
    second.unlink()
    assert f"it lacks {second.name}, of the 3 parts of {first.name}" in refusal(first.parent)
    assert f"{second}: is missing, part 2 of 3" in refusal(first)
    second.write_bytes(kept)
    renamed = first.rename(first.with_name("mine.gguf"))
    assert "its name does not end in -00001-of-00003.gguf" in refusal(renamed)
    assert f"several GGUF files; name one of {first.name}, mine.gguf" in refusal(renamed.parent)
    renamed.unlink()
    assert f"it lacks {first.name}, of the 3 parts" in refusal(first.parent)


def described(file: Path, arch: str, **values: Any) -> Path:
    """A file of metadata, with an embedding."""
    writer = gguf.GGUFWriter(file, arch)
    for key in ("block_count", "feed_forward_length", "attention.head_count", "context_length"):
        values.setdefault(key, 4)
    for key, value in {"embedding_length": 128, **values}.items():
        writer.add_key_value(f"{arch}.{key}", value, gguf.GGUFValueType.get_type(value))
    for key in ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"):
        writer.add_float32(f"{arch}.{key}", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((96, 128), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("arch", "layers", "scalar"), [("gemma2", 26, 16), ("gemma2", 46, 32), ("gemma3", 46, 16),
                                                        ("gemma3", 62, 32)])
def test_the_scale_of_gemmas_scores_is_told_by_the_number_of_layers(arch: str, layers: int, scalar: int, tmp_path: Path
                                                                    ) -> None:
    file = described(tmp_path / "m.gguf", arch, block_count=layers, **{"attention.key_length": 16})
    assert resolve_model(EngineArgs(model=str(file))).hf["query_pre_attn_scalar"] == scalar


@pytest.mark.parametrize(("arch", "values", "message"), [
    ("gptj", {}, "'gptj' is not supported; supported are baichuan, bloom"),
    ("opt", {}, "'opt' is not supported"),
    ("granite", {"rope.scaling.finetuned": False}, "a model without positions"),
    ("mistral3", {"expert_count": 4}, r"mixtures of experts.*mistral3\.expert_count is 4"),
    ("llama", {"attention.head_count_kv": [2, 2, 1]}, r"head_count_kv is \[2, 2, 1\], which differs between layers"),
    ("mpt", {}, r"attn_config\.alibi False is not supported"),
    ("qwen2", {"attention.causal": False}, r"attention\.causal is False"),
    ("llama", {"expert_gating_func": 2}, "expert_gating_func is 2, which is not supported; supported are 0, 1"),
    ("llama", {"attention.head_count": 0}, "attention.head_count is 0; it must be a positive number"),
    ("glm4", {"rope.dimension_sections": [8, 12, 12, 0]}, "rope.dimension_sections"),
    ("qwen3moe", {}, "qwen3moe.expert_count is missing"),
    ("llama", {"block_count": 10**9}, "num_hidden_layers must be at most 4096, is 1000000000"),
    ("llama", {"attention.head_count_kv": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ("llama", {"attention.head_count": [[1], [2]]}, r"head_count is \[\[1\], \[2\]\], which differs between layers"),
    ("llama", {"attention.key_length": 1.5}, "head_dim must be a positive integer, is 1.5"),
    ("llama", {"attention.sliding_window": -1}, "sliding_window must be a positive integer, is -1"),
    ("llama", {"rope.freq_base": "x"}, "rope_theta must be a number above 1"),
    ("llama", {"rope.dimension_count": -1}, "rope.dimension_count is -1; it must be a positive number"),
    ("llama", {"rope.dimension_sections": 5}, "rope.dimension_sections"),
    ("llama", {"rope.scaling.factor": float("nan")}, "factor must be a number above 0"),
    ("gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False]},
     "layer_types lists 2 layers, and num_hidden_layers is 4"),
])
def test_what_would_be_computed_wrong_is_refused(arch: str, values: dict[str, Any], message: str, tmp_path: Path
                                                 ) -> None:
    file = described(tmp_path / "m.gguf", arch, **values)
    with pytest.raises(ConfigError, match=message):
        resolve_model(EngineArgs(model=str(file)))


@pytest.mark.parametrize("count", ["3", [2], 2**30, -2])
def test_a_number_of_parts_that_is_none_is_refused(count: Any, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "parts.gguf", "llama")
    writer.add_key_value("split.count", count, gguf.GGUFValueType.get_type(count))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"split\.count is .*; it must be a number of parts, 99999 at most"):
        resolve_model(EngineArgs(model=str(tmp_path / "parts.gguf")))
