"""The product that is compiled where it runs, against what its codes stand for."""

from __future__ import annotations

import math
import platform
from dataclasses import replace

import pytest
import torch

from quire.kernels import cpu_packed_product as kernel
from quire.kernels.bench import cases
from quire.kernels.packed_weight import PackedWeight, packed
from quire.kernels.reference import packed_product as reference

# outputs, inputs, elements of a group: ragged tiles, places that are filled up, and a last group that is shorter
SHAPES = [(1, 32, 32), (20, 96, 32), (33, 303, 303), (16, 128, 16), (24, 116, 48), (49, 144, 12)]


def in_halves(weight: PackedWeight) -> PackedWeight:
    """Itself, with other scales: they and their products with zeros are exact in float16."""
    return replace(weight, scales=torch.randint(1, 33, weight.scales.shape).half() / 64)


def product_of(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    assert kernel.reads(weight)
    return kernel.packed_product(x, kernel.lay_out(weight))


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product(kind: str, shape: tuple[int, int, int]) -> None:
    num_outputs, size, group = shape
    weight, right = cases.packed_weight(kind, num_outputs, size, group, with_zeros=num_outputs != 20,
                                        whole_zeros=num_outputs == 33, with_outer=num_outputs in (33, 24))
    for num_rows in range(20):  # in blocks of one, two, four and eight, the last one filled up
        x = torch.randn(num_rows, size + 8)[:, :size]  # rows with a gap between them
        out = product_of(x, weight)
        assert out.shape == (num_rows, num_outputs)
        assert not num_rows or cases.relative_error(out, cases.product(x, right, None)) < 1e-6


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one form of it")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx2"])
def test_it_is_the_product_on_older_machines(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_OPTIONS", (*kernel._OPTIONS, "-mno-avx512f", without))
    function = kernel.library.__wrapped__()
    monkeypatch.setattr(kernel, "library", lambda: function)
    x = torch.randn(11, 116)
    for kind in ("int4", "int8"):
        weight, _ = cases.packed_weight(kind, 33, 116, 48, with_zeros=True, whole_zeros=True)
        for one in (weight, in_halves(weight)):
            right = reference.unpack(one, torch.float64)
            assert cases.relative_error(product_of(x, one), cases.product(x, right, None)) < 1e-6


def test_numbers_in_16_bits_stay_so_and_others_do_not() -> None:
    weight, _ = cases.packed_weight("int4", 33, 116, 48, with_zeros=True, whole_zeros=True)
    short = in_halves(weight)
    for one, dtype in ((weight, torch.float32), (short, torch.float16)):
        laid_out = kernel.lay_out(one)
        assert laid_out.scales.dtype == laid_out.offsets.dtype == dtype
    for factor in (2.0 ** -30, 2.0 ** 20):  # beyond float16
        assert kernel.lay_out(replace(short, scales=short.scales.float() * factor)).scales.dtype == torch.float32
    # A format's least value of a group is a zero here, and rounded as that.
    least = torch.randn(3, 33).half()
    scales = torch.rand(3, 33).half() + 0.01
    of_blocks = kernel.lay_out(replace(weight, scales=scales.float(), zeros=-least.float() / scales.float() - 8))
    assert torch.equal(of_blocks.offsets, kernel._in_tiles(least))


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_the_weights(kind: str, shape: tuple[int, int, int]) -> None:
    num_outputs, size, group = shape
    weight, right = cases.packed_weight(kind, num_outputs, size, group, with_zeros=True, whole_zeros=True)
    numbers = torch.tensor([num_outputs - 1, 0, num_outputs // 2, 0])
    rows = kernel.lay_out(weight).rows(numbers)
    assert cases.relative_error(rows[:, :size], right[numbers]) < 1e-6
    assert kernel.lay_out(weight).rows(numbers[:0]).shape == (0, rows.shape[1])


def test_rows_have_nothing_of_each_other() -> None:
    weight, right = cases.packed_weight("int4", 20, 96, 32)
    x = torch.randn(11, 96)
    expected = cases.product(x, right, None)
    x[::2] = math.nan
    out = product_of(x, weight)
    assert out[::2].isnan().all()
    assert cases.relative_error(out[1::2], expected[1::2]) < 1e-6


def test_what_it_cannot_read_is_left_to_others() -> None:
    codes, scales = torch.zeros(4, 60, dtype=torch.uint8), torch.ones(6, 4)
    assert not kernel.reads(packed("int4", codes, scales, 10))
    for kind in ("e4m3", "e2m1", "nf4"):
        assert not kernel.reads(packed(kind, codes, scales[:1], 60))


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(OSError, match="no C compiler here"):
        kernel.library.__wrapped__()
    broken = tmp_path / "cc"
    # What it prints is no UTF-8; it prints nothing; it makes no library.
    for does, match in (("printf 'it says \\351 no' >&2; exit 1", "it says . no"), ("exit 1", "returned non-zero"),
                        (': > "$7"', "file too short")):
        broken.write_text(f"#!/bin/sh\n{does}\n")
        broken.chmod(0o700)
        with pytest.raises(OSError, match=match):
            kernel.library.__wrapped__()


def test_defaults_of_the_process_change_nothing() -> None:
    weight, right = cases.packed_weight("int8", 20, 96, 32)
    x = torch.randn(3, 96)
    torch.set_default_dtype(torch.bfloat16)
    try:
        out = product_of(x, weight)
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.dtype == torch.float32
    assert cases.relative_error(out, cases.product(x, right, None)) < 1e-6


def test_a_large_matrix_is_laid_out_in_bands() -> None:
    num_outputs = 16 * kernel._BAND + 21
    weight, right = cases.packed_weight("int4", num_outputs, 32, 32)
    x = torch.randn(3, 32)
    assert cases.relative_error(product_of(x, weight), cases.product(x, right, None)) < 1e-6
