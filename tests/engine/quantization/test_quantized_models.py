"""A quantised checkpoint gives the logits of the floats that it stands for: prompts, chunks, decodes, two ranks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.engine.config import EngineArgs
from quire.engine.errors import WeightError
from quire.engine.weights.locate import resolve_model
from tests.engine.models import tiny
from tests.engine.models.paging import load
from tests.engine.models.rank_pair import RankPair, logits_of_steps
from tests.engine.quantization import writers
from tests.engine.quantization.writers import Writer, quantise

PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(60)]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@dataclass
class Case:
    config: dict[str, Any] | None
    writer: Writer
    family: str = "llama"
    sizes: dict[str, Any] = field(default_factory=dict)
    file: str = "config.json"


def gptq(bits: int, group: int, *, sym: bool, desc_act: bool = False, form: str = "gptq", **more: Any) -> Case:
    return Case({"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": desc_act,
                 "checkpoint_format": form}, writers.gptq(group, bits, symmetric=sym, act_order=desc_act, version=form,
                                                          **more))


def compressed(weights: dict[str, Any], writer: Writer, form: str, inputs: dict[str, Any] | None = None,
               family: str = "llama") -> Case:
    return Case({"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}}, writer, family)


E4M3, INT8 = torch.float8_e4m3fn, torch.int8
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
WIDE = {"hidden_size": 256, "intermediate_size": 320, "num_attention_heads": 2, "head_dim": 128}

CASES = {
    "awq": Case({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
                writers.awq(32)),
    "awq, qwen2": Case({"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}, writers.awq(64),
                       "qwen2", file="quant_config.json"),
    "gptq": gptq(4, 32, sym=True),
    "gptq, another zero": gptq(4, 64, sym=True, stored_zero=8),
    "gptq, asymmetric": gptq(4, 32, sym=False),
    "gptq, version 2": gptq(4, 64, sym=False, form="gptq_v2"),
    "gptq, act order": gptq(4, 32, sym=False, desc_act=True),
    "gptq, 8 bits": gptq(8, 32, sym=False),
    "gptq, 3 bits": gptq(3, 32, sym=False),
    "gptq, 2 bits, whole rows": gptq(2, -1, sym=True),
    "pack-quantized": compressed(INT4, writers.pack_quantized(32, 4, symmetric=True), "pack-quantized"),
    "pack-quantized, asymmetric": compressed({**INT4, "symmetric": False, "group_size": 64},
                                             writers.pack_quantized(64, 4, symmetric=False), "pack-quantized", None,
                                             "qwen2"),
    "pack-quantized, act order": compressed({**INT4, "actorder": "group"},
                                            writers.pack_quantized(32, 4, symmetric=True, act_order=True),
                                            "pack-quantized"),
    "pack-quantized, 5 bits": compressed({"num_bits": 5, "type": "int", "symmetric": False, "strategy": "channel"},
                                         writers.pack_quantized(-1, 5, symmetric=False), "pack-quantized"),
    "int8 of tokens": compressed({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
                                 writers.eight_bits(INT8, "channel", scale_dtype=torch.bfloat16), "int-quantized",
                                 {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}),
    "fp8 of tokens": compressed({**FLOAT8, "strategy": "channel"}, writers.eight_bits(
        E4M3, "channel", scale_dtype=torch.bfloat16), "float-quantized", TOKENS),
    "fp8, compressed blocks": compressed({**FLOAT8, "strategy": "block", "block_structure": "128x128"},
                                         writers.eight_bits(E4M3, "block"), "float-quantized", TOKENS),
    "fp8, a tensor": Case({"quant_method": "fp8", "activation_scheme": "static"},
                          writers.eight_bits(E4M3, "tensor", static=True)),
    "fp8, blocks": Case({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
                        writers.eight_bits(E4M3, "block", scale_name="weight_scale_inv"), sizes=WIDE),
    "modelopt, fp8": Case({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": [
        "lm_head"]}}, writers.eight_bits(E4M3, "tensor", static=True), "qwen2", file="hf_quant_config.json"),
    "modelopt, fp8 of tokens": Case({"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
                                    writers.eight_bits(E4M3, "outputs")),
    "modelopt, nvfp4": Case({"quant_method": "modelopt", "quant_algo": "NVFP4"},
                            writers.nvfp4("weight", "weight_scale_2", divides=False)),
    "nvfp4": compressed({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
                        writers.nvfp4("weight_packed", "weight_global_scale", divides=True), "nvfp4-pack-quantized"),
    "mxfp4": compressed({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, writers.mxfp4,
                        "mxfp4-pack-quantized"),
    "nf4": Case({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
                writers.nf4(nested=False)),
    "nf4, nested": Case({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                         "bnb_4bit_use_double_quant": True}, writers.nf4(nested=True)),
    "llm.int8": Case({"quant_method": "bitsandbytes", "load_in_8bit": True}, writers.llm_int8),
}


@dataclass
class Written:
    path: Path
    method: str
    expected: dict[str, torch.Tensor]  # as rank_pair.logits_of_steps


# One of each way to store numbers; the others with the slow tests.
QUICK = ("awq", "gptq, act order", "gptq, 3 bits", "pack-quantized, asymmetric", "int8 of tokens", "fp8, blocks",
         "modelopt, fp8", "nvfp4", "mxfp4", "nf4, nested")


@pytest.fixture(scope="module", params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
                                        for name in CASES])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    case, path = CASES[request.param], tmp_path_factory.mktemp("model")
    tiny.write(path, case.family, **{**SIZES, **case.sizes})
    floats = quantise(path, case.config, case.writer, file=case.file)
    method = resolve_model(EngineArgs(model=str(path))).quantization.method
    return Written(path, method, logits_of_steps(load(floats), PROMPT))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPair]:
    pair = RankPair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, right in expected.items():
        assert (found[name] - right).norm() < 2e-5 * right.norm(), name


def test_logits_are_those_of_the_floats(written: Written) -> None:
    assert_close(logits_of_steps(load(written.path, quantization=written.method), PROMPT), written.expected)


@pytest.mark.slow
def test_a_cpu_makes_floats_of_them_where_nobody_asks_for_less_memory(written: Written) -> None:
    assert_close(logits_of_steps(load(written.path), PROMPT), written.expected)


def test_two_ranks_give_them_too(written: Written, pair: RankPair) -> None:
    for found in pair.run(written.path, PROMPT, quantization=written.method):
        assert not isinstance(found, str), found
        assert_close(found, written.expected)


def test_floats_are_rounded_to_fp8_on_request(tmp_path: Path) -> None:
    tiny.write(tmp_path / "model", "qwen2", **SIZES)
    floats = quantise(tmp_path / "model", None, writers.eight_bits(E4M3, "channel"))
    shutil.rmtree(tmp_path / "model")
    tiny.write(tmp_path / "model", "qwen2", **SIZES)
    found = logits_of_steps(load(tmp_path / "model", quantization="fp8"), PROMPT)
    assert_close(found, logits_of_steps(load(floats), PROMPT))


def test_what_is_left_alone_in_a_fused_layer_stays_as_it_is(tmp_path: Path) -> None:
    tiny.write(tmp_path / "model", "llama", **SIZES)
    case, some = CASES["awq"], re.compile(r"(.*(?:q_proj|v_proj|up_proj|1.*down_proj|lm_head))\.weight")
    floats = quantise(tmp_path / "model", case.config, awq_of_97(case.writer), only=some)
    found = logits_of_steps(load(tmp_path / "model", quantization="awq"), PROMPT)
    assert_close(found, logits_of_steps(load(floats), PROMPT))


def awq_of_97(writer: Writer) -> Writer:
    """The tiny vocabulary is no multiple of a word's eight."""
    def write(name: str, weight: torch.Tensor) -> tuple[writers.Tensors, torch.Tensor]:
        return writer(name, weight) if weight.shape[0] % 8 == 0 else ({"weight": weight}, weight)
    return write


def test_experts_become_floats(tmp_path: Path) -> None:
    tiny.write(tmp_path / "model", "mixtral", **SIZES, num_local_experts=3)
    only = re.compile(r"(.*\.(?:[qkvo]_proj|w[123]))\.weight")
    floats = quantise(tmp_path / "model", CASES["fp8, a tensor"].config, writers.eight_bits(E4M3, "tensor"), only=only)
    assert any("experts.2.w1.weight_scale" in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    assert_close(logits_of_steps(load(tmp_path / "model"), PROMPT), logits_of_steps(load(floats), PROMPT))


@pytest.mark.parametrize(("case", "change", "message"), [
    ("awq", {"model.layers.0.mlp.up_proj.scales": None}, "'model.layers.0.mlp.up_proj.scales' of shape .* is missing"),
    ("awq", {"model.layers.0.mlp.up_proj.qzeros": torch.zeros(2, 16)}, "qzeros' is stored as float32; .* needs int32"),
    ("fp8, a tensor", {"model.layers.1.self_attn.k_proj.weight_scale": None}, "k_proj.weight_scale' .*is missing"),
    ("fp8, a tensor", {"model.layers.1.self_attn.k_proj.weight_scale": torch.ones(3)}, "weight_scale' has shape"),
    ("gptq", {"model.layers.0.mlp.up_proj.g_idx": torch.full((64,), 9, dtype=torch.int32)}, None),
    ("gptq, act order", {"model.layers.0.mlp.up_proj.g_idx": torch.full((64,), 9, dtype=torch.int32)},
     "up_proj.g_idx names groups other than the 2"),
    ("gptq", {"model.layers.0.mlp.up_proj.bias": torch.ones(128)}, "up_proj.bias' is not zero"),
    ("gptq", {"model.layers.0.mlp.up_proj.bias": torch.zeros(128)}, None),
    ("gptq", {"model.layers.0.self_attn.k_scale": torch.ones(())}, None),
    ("gptq", {"model.layers.0.self_attn.other": torch.ones(1)}, "no place for: model.layers.0.self_attn.other"),
])
def test_half_a_format_is_refused_by_the_tensors_name(case: str, change: dict[str, torch.Tensor | None],
                                                      message: str | None, tmp_path: Path) -> None:
    tiny.write(tmp_path / "model", "llama", **SIZES)
    quantise(tmp_path / "model", CASES[case].config, CASES[case].writer)
    tensors = load_file(tmp_path / "model" / "model.safetensors") | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None},
              tmp_path / "model" / "model.safetensors")
    if message is None:
        load(tmp_path / "model")
        return
    with pytest.raises(WeightError, match=message):
        load(tmp_path / "model")


def test_random_weights_are_packed_as_the_configuration_says(tmp_path: Path) -> None:
    for name in ("awq", "fp8, blocks", "nvfp4", "int8 of tokens", "nf4"):
        path = tmp_path / name
        tiny.write(path, "llama", **SIZES)
        quantise(path, CASES[name].config, CASES[name].writer)
        (path / "model.safetensors").unlink()
        method = resolve_model(EngineArgs(model=str(path))).quantization.method
        found = logits_of_steps(load(path, load_format="dummy", quantization=method), PROMPT)["most"]
        assert found.isfinite().all(), name
        assert found.std() > 0, name
