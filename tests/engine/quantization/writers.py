"""Quantised checkpoints, written from what the formats' documents say, number by number, and the floats they stand for.

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
    q = np.zeros(w.shape, np.int64)
    scales, zeros = (np.zeros((outputs, own.max() + 1)) for _ in range(2))
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


def pack_quantized(group: int, bits: int, *, symmetric: bool, act_order: bool = False) -> Writer:
    """compressed-tensors' own."""
    def write(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outputs, inputs = weight.shape
        size = inputs if group == -1 else group
        own = np.arange(inputs) // size
        if act_order:
            own = own[np.random.default_rng(len(name)).permutation(inputs)]
        q, scales, zeros, floats = rounded(weight, size, bits, symmetric=symmetric, own=own)
        stored = {"weight_packed": torch.from_numpy(words_of(q, bits)), "weight_scale": half(scales).bfloat16(),
                  "weight_shape": torch.tensor([outputs, inputs])}
        floats = torch.from_numpy(q - zeros[:, own]) * stored["weight_scale"].double()[:, own]
        if not symmetric:
            stored["weight_zero_point"] = torch.from_numpy(words_of(zeros.T, bits)).T
        if act_order:
            stored["weight_g_idx"] = torch.from_numpy(own.astype(np.int32))
        return stored, floats

    return write


def eight_bits(kind: torch.dtype, by: str, *, scale_name: str = "weight_scale",
               scale_dtype: torch.dtype = torch.float32, block: int = 128, static: bool = False) -> Writer:
    """`by`: tensor, channel ([out, 1]), outputs ([out]) or block."""
    most = 448.0 if kind == torch.float8_e4m3fn else 127.0

    def write(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outputs, inputs = weight.shape
        if by == "block":
            high, wide = -(-outputs // block), -(-inputs // block)
            scale = torch.stack([torch.stack([part.abs().max() for part in band.split(block, 1)])
                                 for band in weight.split(block, 0)]) / most
            assert scale.shape == (high, wide)
        else:
            scale = weight.abs().amax(1, keepdim=True) if by != "tensor" else weight.abs().max()
            scale = scale / most
        scale = scale.to(scale_dtype)
        spread = scale.double()
        if by == "block":
            spread = spread.repeat_interleave(block, 0)[:outputs].repeat_interleave(block, 1)[:, :inputs]
        ratio = weight.double() / spread
        codes = (ratio.round() if kind == torch.int8 else ratio.float()).clamp(-most, most).to(kind)
        stored = {"weight": codes, scale_name: scale.squeeze(1) if by == "outputs" else scale}
        if static:
            stored["input_scale"] = torch.tensor(0.02)
        return stored, codes.double() * spread

    return write


E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def small_floats(ratio: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """The nearest e2m1 of each number: two to a byte, the even one in the low bits; and their values."""
    q = np.abs(ratio.numpy()[..., None] - E2M1).argmin(-1).astype(np.uint8)
    return torch.from_numpy(q[:, ::2] | q[:, 1::2] << 4), E2M1[q]


def mxfp4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    largest = weight.double().unflatten(1, (-1, 32)).abs().amax(2)
    exponents = largest.log2().floor() - 2
    spread = (2.0 ** exponents).repeat_interleave(32, 1)
    packed, values = small_floats(weight.double() / spread)
    return ({"weight_packed": packed, "weight_scale": (exponents + 127).to(torch.uint8)},
            torch.from_numpy(values) * spread)


def nvfp4(codes: str, of_tensor: str, *, divides: bool) -> Writer:
    def write(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        multiplier = (weight.abs().max() / 2688).float()
        scale = (weight.unflatten(1, (-1, 16)).abs().amax(2) / 6 / multiplier).to(torch.float8_e4m3fn)
        stated = 1 / multiplier if divides else multiplier
        spread = scale.double().repeat_interleave(16, 1) * (1 / stated.double() if divides else stated.double())
        packed, values = small_floats(weight.double() / spread)
        return ({codes: packed, "weight_scale": scale, of_tensor: stated.reshape(1) if divides else stated},
                torch.from_numpy(values) * spread)

    return write


NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
                1.0])


def nf4(*, nested: bool) -> Writer:
    def write(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        blocks = weight.double().reshape(-1, 64)
        absmax = blocks.abs().amax(1)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
        stored: Tensors = {"weight.absmax": absmax.float(), "weight.quant_map": torch.from_numpy(NF4).float()}
        if nested:
            offset = float(absmax.mean())
            padded = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
            outer, grid = padded.abs().amax(1).float(), torch.linspace(-1, 1, 256)
            codes = ((padded / outer.unsqueeze(1)).unsqueeze(2) - grid).abs().argmin(2)
            absmax = (grid[codes].double() * outer.double().unsqueeze(1)).view(-1)[:len(absmax)] + offset
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
            stored |= {"weight.absmax": codes.view(-1)[:len(absmax)].to(torch.uint8), "weight.nested_absmax": outer,
                       "weight.nested_quant_map": grid}
        q = np.abs((blocks / absmax.unsqueeze(1)).numpy()[..., None] - NF4).argmin(-1).astype(np.uint8)
        flat = q.reshape(-1)
        stored["weight"] = torch.from_numpy(flat[::2] << 4 | flat[1::2]).unsqueeze(1)
        in_bytes = list(json.dumps(state).encode())
        stored["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(in_bytes, dtype=torch.uint8)
        return stored, (torch.from_numpy(NF4[q]) * absmax.unsqueeze(1)).view(weight.shape)

    return write


def llm_int8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    largest = weight.abs().amax(1)
    codes = (weight.double() / largest.double().unsqueeze(1) * 127).round().to(torch.int8)
    return ({"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)},
            codes.double() * largest.double().unsqueeze(1) / 127)
