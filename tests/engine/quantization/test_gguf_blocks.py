"""GGUF files computed in their blocks give what their floats do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from quire.engine.quantization.gguf_blocks import _TYPES, GgufBlocks
from quire.engine.weights.checkpoint import View
from quire.engine.weights.gguf import GgufCheckpoint
from quire.engine.weights.scheme import Part
from quire.kernels import ops
from quire.kernels.bench import cases
from tests.engine.models import tiny
from tests.engine.models.paging import load
from tests.engine.models.rank_pair import logits_of_steps
from tests.engine.weights.converted import convert

PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(60)]
ROWS, SIZE = 3, 512
# Where a type's blocks have their float16 numbers
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


@pytest.mark.parametrize("name", _TYPES)
def test_any_bytes_stand_for_the_numbers_that_gguf_says(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (ROWS, SIZE // elements, size), dtype=np.uint8)
    for place in HALVES.get(name, (0,)):
        raw[:, :, place:place + 2] = random.normal(size=(*raw.shape[:2], 1)).astype(np.float16).view(np.uint8)
    raw[0, 0, HALVES.get(name, (0,))[0]:][:2] = 0  # a block without a scale is all its least
    right = torch.from_numpy(gguf.dequantize(raw.reshape(ROWS, -1), kind))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_embedding_length(SIZE)
    writer.add_tensor("blk.0.ffn_up.weight", raw.reshape(ROWS, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    view = View(checkpoint, torch.device("cpu"), torch.float32).sub("model.layers.0.mlp.up_proj")
    assert view.block_type("weight") == name
    for rows, columns in ((slice(None), slice(None)), (slice(1, 3), slice(SIZE // 2, SIZE))):
        packed = GgufBlocks(name).read(view, Part("", ROWS, rows), SIZE, columns, transposed=False)
        assert cases.relative_error(ops.unpack(packed, torch.float32), right[rows, columns]) < 1e-6


@pytest.mark.parametrize(("family", "kind", "sizes"), [
    ("llama", "Q4_1", {}), ("qwen2", "Q8_0", {}), ("gpt2", "Q8_0", {}),
    ("falcon", "Q5_1", {"new_decoder_architecture": True, "num_kv_heads": 2}), ("mixtral", "Q4_0", {})])
def test_logits_of_blocks_are_those_of_floats(family: str, kind: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    convert(tmp_path, tiny.write(tmp_path, family, **{"intermediate_size": 96, **sizes}), file,
            kind=gguf.GGMLQuantizationType[kind])
    found = logits_of_steps(load(file, quantization="gguf"), PROMPT)
    for name, right in logits_of_steps(load(file), PROMPT).items():
        assert (found[name] - right).norm() < 2e-5 * right.norm(), name
