"""Weights that a CPU holds in fewer bits: what rounding costs, what stays exact, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, SamplingParams
from quire.app.doctor.finding import OK
from quire.app.doctor.model import check_cpu_weights
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.execution.device import settle
from quire.engine.execution.hardware import Hardware
from quire.engine.memory_need import MemoryNeed
from quire.engine.quantization import cpu_product
from quire.engine.quantization.cpu_product import EightBitProduct
from quire.engine.quantization_config import FLOAT16, INT8
from quire.engine.weights.locate import resolve_model
from quire.kernels.bench.cases import relative_error
from quire.kernels.packed_weight import packed
from quire.loadtest.cpu_weights import CHATS
from tests.engine.models import tiny
from tests.engine.models.paging import load
from tests.engine.models.rank_pair import logits_of_steps
from tests.engine.quantization.test_quantized_models import CASES, SIZES
from tests.engine.quantization.writers import quantise

pytestmark = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines,
                                reason="this torch is built without FBGEMM")
PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(60)]
# What rounding may cost: weights to 11 bits; weights to 8 bits; inputs to 14 bits where weights are exact.
HALF_ERROR, WEIGHTS_ERROR, INPUTS_ERROR = 4e-4, 1.2e-2, 4e-4


def _weight(outputs: int = 96, size: int = 160) -> torch.Tensor:
    return torch.randn(outputs, size, generator=torch.Generator().manual_seed(0)) * 0.05


def _x(rows: int, size: int = 160) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("form", "most"), [(FLOAT16, HALF_ERROR), (INT8, WEIGHTS_ERROR)])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 70])
def test_products_are_those_of_floats_but_for_rounding(form: str, most: float, rows: int) -> None:
    weight, bias, x = _weight(), _x(1, 96)[0], _x(rows)
    found = cpu_product.cpu_product(weight, bias, form)(x)
    assert found.shape == (rows, 96)
    assert found.dtype == torch.float32
    if rows:
        assert relative_error(found, x @ weight.T + bias) < most


def test_in_8_bits_a_row_is_the_same_to_the_bit_in_any_batch() -> None:
    product = EightBitProduct.of_floats(_weight(), None)
    x = _x(40) * torch.arange(1, 41).unsqueeze(1) ** 3  # rows of very different sizes
    whole = product(x)
    for rows in (1, 2, 3, 17, 39):
        assert torch.equal(product(x[:rows].contiguous()), whole[:rows])


def test_rows_and_weights_of_zeros_give_zeros() -> None:
    weight, x = _weight(), _x(3)
    weight[5], x[1] = 0, 0
    found = EightBitProduct.of_floats(weight, None)(x)
    assert not found[1].any() and not found[:, 5].any()
    assert found[0].any()


def test_no_sum_overflows_where_all_is_as_large_as_can_be() -> None:
    codes = torch.full((32, 4096), 127, dtype=torch.int8)
    codes[1::2] = -128
    product = EightBitProduct(codes, torch.ones(32), None)
    for sign in (1.0, -1.0):
        x = torch.full((2, 4096), sign * 7)
        assert relative_error(product(x), x @ codes.float().T) < 1e-6


def test_whole_numbers_of_a_checkpoint_are_multiplied_as_they_are() -> None:
    codes = (_weight(32, 80) * 400).round().clamp(-127, 127).to(torch.int8)  # none need be the largest
    weight = packed("int8", codes.view(torch.uint8), torch.rand(1, 32) + 0.5, 80, outer=torch.rand(32) + 0.5)
    product, x = EightBitProduct.of_packed(weight, None), _x(4, 80)
    assert product is not None and weight.outer is not None
    right = x @ (codes * (weight.scales[0] * weight.outer).unsqueeze(1)).T
    assert relative_error(product(x), right) < INPUTS_ERROR
    two = replace(weight, scales=torch.ones(2, 32), group=64)
    assert EightBitProduct.of_packed(two, None) is None, "groups have scales of their own"


# Random models of this size pass errors on several times as large as they are.
@pytest.mark.parametrize(("form", "most"), [(FLOAT16, 1e-2), (INT8, 0.15)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_are_those_of_floats_but_for_rounding(form: str, most: float, family: str, tmp_path: Path) -> None:
    tiny.write(tmp_path, family)
    found = logits_of_steps(load(tmp_path, cpu_weights=form), PROMPT)
    for name, right in logits_of_steps(load(tmp_path), PROMPT).items():
        error = relative_error(found[name], right)
        assert 0 < error < most, name


@pytest.mark.parametrize(("case", "most"), [("int8 of tokens", 2e-2), ("gptq, act order", 0.15)])
def test_of_a_quantised_checkpoint_8_bits_of_outputs_stay_and_others_are_rounded_anew(
        case: str, most: float, tmp_path: Path) -> None:
    tiny.write(tmp_path, CASES[case].family, **{**SIZES, **CASES[case].sizes})
    floats = quantise(tmp_path, CASES[case].config, CASES[case].writer, file=CASES[case].file)
    found = logits_of_steps(load(tmp_path, cpu_weights=INT8), PROMPT)
    for name, right in logits_of_steps(load(floats), PROMPT).items():
        assert relative_error(found[name], right) < most, name


def test_the_packaged_model_is_counted_in_its_form() -> None:
    model = resolve_model(EngineArgs())
    needs = {form: MemoryNeed.of(EngineArgs(cpu_weights=form), model, "float32", 1 << 34).weights
             for form in ("float32", FLOAT16, INT8)}
    assert needs["float32"] == 2 * needs[FLOAT16] == 4 * needs[INT8]


@pytest.mark.slow
def test_the_packaged_model_replies_in_float16_as_in_float32() -> None:
    prompt = [[{"role": "user", "content": chat}] for chat in CHATS[:4]]
    replies = {}
    for form in ("float32", FLOAT16, INT8):
        llm = LLM(device="cpu", cpu_threads=1, cpu_weights=form, max_model_len=128)
        params = SamplingParams(temperature=0.0, max_tokens=16)
        replies[form] = [output.outputs[0].token_ids for output in llm.chat(prompt, params, use_tqdm=False)]
        alone = llm.chat(prompt[0], params, use_tqdm=False)[0].outputs[0].token_ids
        assert alone == replies[form][0], "a batch changes nothing"
    assert replies[FLOAT16] == replies["float32"]
    assert [reply[0] for reply in replies[INT8]] == [reply[0] for reply in replies["float32"]]


@pytest.mark.parametrize(("args", "hardware", "message"), [
    ({"device": "cuda"}, Hardware(1, "a GPU", (9, 0), 10**11), "--cpu-weights: int8 is for engines on a CPU"),
    ({"dtype": "half"}, Hardware(0), "--dtype is float16"),
    ({"quantization": "gguf"}, Hardware(0), "--quantization gguf keeps weights"),
    ({"batch_invariant": True, "cpu_weights": FLOAT16}, Hardware(0), "use int8 or float32"),
    ({"model_impl": "transformers"}, Hardware(0), "transformers' code"),
])
def test_what_it_does_not_go_with_is_refused_by_name(args: dict[str, Any], hardware: Hardware, message: str) -> None:
    engine_args = EngineArgs(**{"cpu_weights": INT8, **args})
    with pytest.raises(ConfigError, match=message):
        settle(engine_args, resolve_model(EngineArgs()), hardware)


def test_another_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="--cpu-weights: 'int4' is not one of float32, float16, int8"):
        EngineArgs(cpu_weights="int4").checked()


@pytest.mark.parametrize("form", [FLOAT16, INT8])
def test_an_operator_that_is_wrong_or_missing_here_is_refused_before_weights_are_read(
        form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_product.require(form)
    cpu_product.require.cache_clear()
    right = cpu_product.cpu_product

    def wrong(*args: Any) -> Any:
        product = right(*args)
        return lambda x: product(x).clamp_(max=100.0)

    monkeypatch.setattr(cpu_product, "cpu_product", wrong)
    with pytest.raises(ConfigError, match=f"{form} gives wrong sums"):
        cpu_product.require(form)
    monkeypatch.setattr(cpu_product, "_ENGINE", "another")
    with pytest.raises(ConfigError, match=f"{form} needs FBGEMM"):
        cpu_product.require(form)


def test_doctor_says_whether_the_machine_can() -> None:
    assert check_cpu_weights("float32") == []
    assert [finding.verdict for finding in check_cpu_weights(INT8)] == [OK]
