"""Quantised checkpoints, written from what the formats' own documents say, number by number, and the floats they stand for.

Shares nothing with the readers: words are put together bit by bit in numpy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
# A module's name and its weight -> the tensors that are stored for it (by the ends of their names), and its dequantised
# weight in float64.
Writer = Callable[[str, torch.Tensor], "tuple[Tensors, torch.Tensor]"]
LINEAR = re.compile(r"(.*\.(?:[qkvo]_proj|gate_proj|up_proj|down_proj|W_pack|c_attn|c_proj|c_fc))\.weight")


def quantise(path: Path, config: dict[str, Any] | None, writer: Writer, *, only: re.Pattern[str] = LINEAR,
             file: str = "config.json") -> Path:
    """Makes the checkpoint at `path` a quantised one, and writes the floats that it now stands for beside it."""
    plain, packed = load_file(path / "model.safetensors"), {}
    for name in list(plain):
        found = only.fullmatch(name)
        if found is None:
            packed[name] = plain[name]
            continue
        stored, dequantised = writer(found[1], plain[name].float())
        packed |= {f"{found[1]}.{end}": tensor.contiguous() for end, tensor in stored.items()}
        plain[name] = dequantised.float().contiguous()
    floats = path.with_name(f"{path.name}-floats")
    floats.mkdir()
    for source in path.glob("*.json"):
        (floats / source.name).write_text(source.read_text())
    save_file(plain, floats / "model.safetensors")
    save_file(packed, path / "model.safetensors")
    if config is not None:
        stated = json.loads((path / file).read_text()) if (path / file).exists() else {}
        stated |= {"quantization_config": config} if file == "config.json" else config
        (path / file).write_text(json.dumps(stated))
    return floats


def words_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """[n, count] -> int32 [n, count * bits / 32]: a row's numbers as one string of bits, lowest first."""
    rows = []
    for row in numbers:
        whole = 0
        for i, number in enumerate(row):
            whole |= int(number) << (i * bits)
        length = -(-len(row) * bits // 32)
        rows.append(np.frombuffer(whole.to_bytes(4 * length, "little"), np.int32))
    return np.stack(rows)


def rounded(weight: torch.Tensor, group: int, bits: int, *, symmetric: bool, own: np.ndarray | None = None
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray, torch.Tensor]:
    """q [out, in], scales and zeros [out, groups], and (q - z) * s; `own`: the group of each input."""
    w = weight.double().numpy()
    outputs, inputs = w.shape
    own = np.arange(inputs) // group if own is None else own
    most = 2 ** bits - 1
    q, scales, zeros = np.zeros(w.shape, np.int64), np.zeros((outputs, own.max() + 1)), np.zeros((outputs, own.max() + 1))
    for g in range(own.max() + 1):
        part = w[:, own == g]
        if symmetric:
            scale, zero = np.abs(part).max(1) * 2 / most, np.full(outputs, 2 ** (bits - 1))
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = (high - low) / most
            zero = np.clip(np.round(-low / scale), 0, most)
        scale = scale.astype(np.float16).astype(np.float64)
        q[:, own == g] = np.clip(np.round(part / scale[:, None]) + zero[:, None], 0, most)
        scales[:, g], zeros[:, g] = scale, zero
    return q, scales, zeros, torch.from_numpy((q - zeros[:, own]) * scales[:, own])


def half(numbers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(numbers.astype(np.float16))


def awq(group: int) -> Writer:
    def write(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        q, scales, zeros, floats = rounded(weight, group, 4, symmetric=False)
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # the output whose number is at bits 4 i of a word

        def packed(rows: np.ndarray) -> torch.Tensor:  # [n, outputs]
            placed = rows.reshape(len(rows), -1, 8)[:, :, order].reshape(len(rows), -1)
            return torch.from_numpy(words_of(placed, 4))

        return {"qweight": packed(q.T), "qzeros": packed(zeros.T), "scales": half(scales.T)}, floats

    return write


def gptq(group: int, bits: int, *, symmetric: bool, act_order: bool = False, version: str = "gptq",
         stored_zero: int | None = None) -> Writer:
    """`stored_zero`: what is written for zero points whatever they are, as some versions of tools did."""
    def write(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs = weight.shape[1]
        size = inputs if group == -1 else group
        own = np.arange(inputs) // size
        if act_order:  # alike for q, k and v, as GPTQ has it, but not for the others
            seed = sum(map(ord, re.sub(r"[qkv]_proj", "", name)))
            own = own[np.random.default_rng(seed).permutation(inputs)]
        q, scales, zeros, floats = rounded(weight, size, bits, symmetric=symmetric, own=own)
        stored = zeros if version == "gptq_v2" else (zeros - 1) % 2 ** bits
        if stored_zero is not None:
            stored = np.full_like(zeros, stored_zero)
        return {"qweight": torch.from_numpy(words_of(q, bits)).T, "qzeros": torch.from_numpy(words_of(stored.T, bits)),
                "scales": half(scales.T), "g_idx": torch.from_numpy(own.astype(np.int32))}, floats

    return write
