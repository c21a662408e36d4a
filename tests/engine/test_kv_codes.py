"""A KV cache in 8 bits: whatever the engine does with a request, its tokens stay the same; it holds more of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from quire import LLM, SamplingParams
from quire.engine.config import EngineArgs, kv_type
from quire.engine.errors import ConfigError, WeightError
from quire.engine.weights.checkpoint import View
from quire.engine.weights.kv_scales import kv_scales
from quire.engine.weights.safetensors import SafetensorsCheckpoint
from tests.engine.models import tiny
from tests.engine.test_parallel_equalities import PROMPTS, SHAPE

SCALES = {f"model.layers.{layer}.self_attn.{name}": torch.tensor(scale)
          for layer in range(4) for name, scale in (("k_proj.k_scale", 0.03), ("v_proj.v_scale", 0.01))}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose checkpoint has scales for its KV cache."""
    path = tmp_path_factory.mktemp("scaled")
    tiny.write(path, "llama", **SHAPE)
    file = path / "model.safetensors"
    save_file({**load_file(file), **SCALES}, file, {"format": "pt"})
    return path


def tokens(path: Path, kind: str = "fp8", **args: Any) -> list[list[int]]:
    """A prompt's, the one with a beginning of another among them."""
    llm = LLM(str(path), skip_tokenizer_init=True, device="cpu", dtype="float32", kv_cache_dtype=kind,
              **{"max_model_len": 110, **args})
    try:
        params = [SamplingParams(temperature=heat, seed=5, max_tokens=8, ignore_eos=True) for heat in (0, 1, 0, 1)]
        prompts = [{"prompt_token_ids": prompt} for prompt in (PROMPTS[5], PROMPTS[7], PROMPTS[9], PROMPTS[6])]
        found = [llm.generate(prompts[:2], params[:2], use_tqdm=False), llm.generate(prompts, params, use_tqdm=False)]
        if "num_gpu_blocks_override" in args:
            assert llm._core.scheduler.num_preemptions > 0
        return [output.outputs[0].token_ids for outputs in found for output in outputs]
    finally:
        llm.close()


@pytest.fixture(scope="module")
def undisturbed(path: Path) -> list[list[int]]:
    return tokens(path)


def test_tokens_are_others_than_those_of_a_wide_cache(path: Path, undisturbed: list[list[int]]) -> None:
    assert undisturbed != tokens(path, "auto"), "or what follows shows nothing"


@pytest.mark.parametrize("args", [
    {"max_num_batched_tokens": 16}, {"num_gpu_blocks_override": 14, "max_model_len": None},
    {"enable_prefix_caching": False, "max_num_seqs": 2}], ids=["in chunks", "preempted", "nothing cached"])
def test_tokens_are_the_same_whatever_happens(path: Path, undisturbed: list[list[int]], args: dict[str, Any]) -> None:
    """What a step's tokens see of each other is rounded as what they see of earlier steps."""
    assert tokens(path, **args) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("args", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}], ids=["tp", "pp"])
def test_tokens_are_the_same_on_two_ranks(path: Path, undisturbed: list[list[int]], args: dict[str, Any]) -> None:
    assert tokens(path, **args) == undisturbed


@pytest.mark.parametrize(("family", "config"), [
    ("mistral", {"sliding_window": 21}), pytest.param("gpt2", {}, marks=pytest.mark.slow)])
def test_windows_and_other_families(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    tiny.write(tmp_path, family, vocab_size=97, **config)
    assert tokens(tmp_path, "fp8_e5m2") == tokens(tmp_path, "fp8_e5m2", max_num_batched_tokens=16)


def test_the_same_memory_holds_more_tokens(path: Path) -> None:
    held = {}
    for kind in ("auto", "float32", "fp8", "fp8_e5m2"):
        llm = LLM(str(path), skip_tokenizer_init=True, device="cpu", kv_cache_memory_bytes=1 << 20, max_model_len=64,
                  kv_cache_dtype=kind)
        held[kind] = llm.info.kv_tokens, llm.info.kv_type
    wide = held["auto"][0]
    assert held == {"auto": (wide, "float32"), "float32": (wide, "float32"), "fp8": (4 * wide, "float8_e4m3fn"),
                    "fp8_e5m2": (4 * wide, "float8_e5m2")}


@pytest.mark.parametrize("has_scales", [True, False])
def test_whose_scales_they_are_is_said_at_the_start(path: Path, tmp_path: Path, has_scales: bool) -> None:
    if not has_scales:
        tiny.write(tmp_path, "llama", **SHAPE)
    with capture_logs() as logs:
        LLM(str(path if has_scales else tmp_path), skip_tokenizer_init=True, device="cpu", kv_cache_dtype="fp8",
            max_model_len=64)
    said = [(line["log_level"], line["scales"]) for line in logs if "the KV cache is in 8 bits" in line["event"]]
    assert said == [("info", "the checkpoint's") if has_scales else ("warning", 1.0)]


@pytest.mark.parametrize(("asked", "dtype", "found"), [
    ("auto", "bfloat16", "bfloat16"), ("fp8", "bfloat16", "float8_e4m3fn"), ("fp8_e5m2", "float32", "float8_e5m2"),
    ("half", "float16", "float16"), ("bfloat16", "float32", None)])
def test_the_type_is_the_models_or_one_of_8_bits(asked: str, dtype: str, found: str | None) -> None:
    args = EngineArgs(kv_cache_dtype=asked)
    if found is not None:
        assert kv_type(args, dtype) == found
        return
    with pytest.raises(ConfigError, match=r"--kv-cache-dtype: bfloat16 was asked for, .* computes in float32"):
        kv_type(args, dtype)


def test_another_name_is_refused_with_those_there_are() -> None:
    assert EngineArgs(kv_cache_dtype="int8").problems() == [
        "--kv-cache-dtype: 'int8' is not one of auto, fp8, fp8_e4m3, fp8_e5m2, half, float16, bfloat16, float32"]


def scales_of(tmp_path: Path, **tensors: Any) -> tuple[float, float]:
    save_file({name.replace("__", "."): torch.as_tensor(x) for name, x in tensors.items()},
              tmp_path / "model.safetensors")
    view = View(SafetensorsCheckpoint(tmp_path), torch.device("cpu"), torch.bfloat16)
    found = kv_scales(view)
    view.refuse_unread(lambda name: False)
    return found


@pytest.mark.parametrize(("k", "v"), [
    ("k_proj__k_scale", "v_proj__v_scale"), ("k_scale", "v_scale"), ("attn__k_scale", "attn__v_scale"),
    ("qkv_proj__k_scale", "qkv_proj__v_scale"), ("k_proj__output_scale", "v_proj__output_scale"),
    ("k_cache__scale", "v_cache__scale")])
def test_scales_have_many_names(tmp_path: Path, k: str, v: str) -> None:
    assert scales_of(tmp_path, **{k: 0.3, v: [0.7]}) == pytest.approx((0.3, 0.7)), "not in the model's type"


def test_one_scale_is_both(tmp_path: Path) -> None:
    assert scales_of(tmp_path, kv_scale=0.5) == (0.5, 0.5)
    assert scales_of(tmp_path, k_scale=0.25) == (0.25, 0.25)
    assert scales_of(tmp_path, v_scale=0.25) == (0.25, 0.25)


@pytest.mark.parametrize("scale", [[0.5, 0.5], 0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_scale_is_refused_by_its_name(tmp_path: Path, scale: Any) -> None:
    with pytest.raises(WeightError, match=r"k_scale' (is|has shape)"):
        scales_of(tmp_path, k_scale=scale)
