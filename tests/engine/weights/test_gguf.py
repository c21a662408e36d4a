"""GGUF files give the numbers that their quantised blocks stand for, in Hugging Face's names and layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, WeightError
from quire.engine.weights.checkpoint import View
from quire.engine.weights.gguf import GgufCheckpoint
from quire.engine.weights.locate import resolve_model
from tests.engine.models import tiny
from tests.engine.models.paging import PagedRun, load
from tests.engine.weights.converted import convert, pairs

TYPES = [kind for kind in gguf.quants._type_traits if kind.name != "NVFP4"]  # needs a second tensor of scales
PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(40)]


def header(path: Path, arch: str = "llama", **values: Any) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, arch)
    settings = {"block_count": 3, "embedding_length": 64, "feed_forward_length": 80, "attention.head_count": 4,
                "attention.head_count_kv": 2, "context_length": 256} | values
    for key, value in settings.items():
        if value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_quantised_type_is_read(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    elements, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    columns, file = max(64, 2 * elements), tmp_path / "m.gguf"
    # Bytes below 0x78, whatever they are scales of, make no float16 that is infinite or not a number.
    raw = np.random.default_rng(0).integers(0, 0x78, (64, columns // elements * num_bytes), np.uint8)
    writer = header(file, embedding_length=columns)
    for name in ("token_embd.weight", "blk.0.attn_q.weight"):
        writer.add_tensor(name, raw, raw_dtype=kind)
    finish(writer)
    expected = torch.from_numpy(gguf.dequantize(raw, kind).astype(np.float32))
    assert expected.unique().numel() > 20
    view = View(GgufCheckpoint(file), torch.device("cpu"), torch.float32).sub("model")
    assert torch.equal(view.take("embed_tokens.weight", (64, columns)), expected)
    assert torch.equal(view.take("embed_tokens.weight", (64, columns), rows=slice(5, 9)), expected[5:9])
    q = view.take("layers.0.self_attn.q_proj.weight", (64, columns))
    assert torch.equal(torch.from_numpy(pairs(q.numpy(), 4)), expected)
    last_heads = view.take("layers.0.self_attn.q_proj.weight", (64, columns), rows=slice(32, 64), columns=slice(3, 50))
    assert torch.equal(last_heads, q[32:, 3:50])


@pytest.mark.parametrize("weights", ["m.gguf", "hf/model.safetensors"])
def test_a_file_that_shrinks_takes_nothing_from_a_model_that_is_loaded(weights: str, tmp_path: Path) -> None:
    reference = tiny.write(tmp_path / "hf", "llama", tie_word_embeddings=True)
    convert(tmp_path / "hf", reference, tmp_path / "m.gguf")
    file = tmp_path / weights
    model = load(file if file.suffix == ".gguf" else file.parent)
    assert str(file) not in Path("/proc/self/maps").read_text()  # else reading on would be SIGBUS
    os.truncate(file, 0)
    got = PagedRun(model, 1, 64).step({0: PROMPT})[0]
    torch.testing.assert_close(got, tiny.logits(reference, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_shard_of_a_permuted_bias_is_that_of_the_whole(kind: str, tmp_path: Path) -> None:
    whole = np.arange(128, dtype=np.float32)
    type_id = gguf.GGMLQuantizationType[kind]
    writer = header(tmp_path / "m.gguf")
    writer.add_tensor("blk.0.attn_q.bias", gguf.quantize(pairs(whole, 4), type_id), raw_dtype=type_id)
    finish(writer)
    view = View(GgufCheckpoint(tmp_path / "m.gguf"), torch.device("cpu"), torch.float32)
    shard = view.take("model.layers.0.self_attn.q_proj.bias", (128,), rows=slice(32, 96))
    torch.testing.assert_close(shard, torch.from_numpy(whole[32:96]), atol=0.5, rtol=0)


def test_smollm2_equals_transformers_reading_the_same_file(smollm2_path: Path, reference_model: Any) -> None:
    tokens = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 30, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282]
    expected = tiny.logits(reference_model.model, tokens)
    got = PagedRun(load(smollm2_path), 1, 64).step({0: tokens})[0]
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


def test_all_end_tokens_are_found(tmp_path: Path) -> None:
    writer = header(tmp_path / "m.gguf")
    writer.add_eos_token_id(5)
    writer.add_eot_token_id(7)
    writer.add_tensor("token_embd.weight", np.zeros((96, 64), np.float32))
    finish(writer)
    model = resolve_model(EngineArgs(model=str(tmp_path / "m.gguf")))
    assert (model.eos_token_ids, model.vocab_size, model.hf["tie_word_embeddings"]) == ((5, 7), 96, True)


def test_tokens_known_to_end_a_text_do_so_where_the_file_marks_only_another(tmp_path: Path) -> None:
    writer = header(tmp_path / "m.gguf")
    writer.add_token_list(["a", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>", "<eos>"])
    normal, control, user_defined = 1, 3, 4
    writer.add_token_types([normal, control, control, control, normal, user_defined])
    writer.add_eos_token_id(3)
    writer.add_tensor("token_embd.weight", np.zeros((96, 64), np.float32))
    finish(writer)
    assert resolve_model(EngineArgs(model=str(tmp_path / "m.gguf"))).eos_token_ids == (3, 1, 5)


@pytest.mark.parametrize(("values", "message"), [
    ({"block_count": None}, "llama.block_count is missing"),
    ({"expert_count": 8}, "llama.expert_used_count is missing"),
])
def test_what_cannot_run_is_refused_by_key(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    writer = header(tmp_path / "m.gguf", **values)
    writer.add_tensor("token_embd.weight", np.zeros((96, 64), np.float32))
    finish(writer)
    with pytest.raises(ConfigError, match=message):
        resolve_model(EngineArgs(model=str(tmp_path / "m.gguf")))


def test_unknown_architectures_and_files_without_weights_are_refused(tmp_path: Path) -> None:
    finish(header(tmp_path / "other.gguf", "mamba"))
    with pytest.raises(ConfigError, match="'mamba' is not supported; supported are baichuan, bloom"):
        resolve_model(EngineArgs(model=str(tmp_path / "other.gguf")))
    finish(header(tmp_path / "vocab.gguf"))
    with pytest.raises(ConfigError, match="vocabulary-only"):
        resolve_model(EngineArgs(model=str(tmp_path / "vocab.gguf")))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"bad\.gguf"):
        resolve_model(EngineArgs(model=str(tmp_path / "bad.gguf")))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    convert(tmp_path / "hf", tiny.write(tmp_path / "hf", "llama"), file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises((WeightError, ConfigError), match="cut short"):
        load(file)
