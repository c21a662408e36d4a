"""A quantised checkpoint gives the logits of the floats that it stands for: whole prompts, chunks, decodes, two ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

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


CASES = {
    "awq": Case({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
                writers.awq(32)),
    "awq, qwen2": Case({"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}, writers.awq(64), "qwen2",
                       file="quant_config.json"),
    "gptq": gptq(4, 32, sym=True),
    "gptq, another zero": gptq(4, 64, sym=True, stored_zero=8),
    "gptq, asymmetric": gptq(4, 32, sym=False),
    "gptq, version 2": gptq(4, 64, sym=False, form="gptq_v2"),
    "gptq, act order": gptq(4, 32, sym=False, desc_act=True),
    "gptq, 8 bits": gptq(8, 32, sym=False),
    "gptq, 3 bits": gptq(3, 32, sym=False),
    "gptq, 2 bits, whole rows": gptq(2, -1, sym=True),
}


@dataclass
class Written:
    path: Path
    expected: dict[str, torch.Tensor]  # as rank_pair.logits_of_steps


@pytest.fixture(scope="module", params=CASES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    case, path = CASES[request.param], tmp_path_factory.mktemp("model")
    tiny.write(path, case.family, **{**SIZES, **case.sizes})
    floats = quantise(path, case.config, case.writer, file=case.file)
    return Written(path, logits_of_steps(load(floats), PROMPT))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPair]:
    pair = RankPair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, right in expected.items():
        assert (found[name] - right).norm() < 2e-5 * right.norm(), name


def test_logits_are_those_of_the_floats(written: Written) -> None:
    assert_close(logits_of_steps(load(written.path), PROMPT), written.expected)


def test_two_ranks_give_them_too(written: Written, pair: RankPair) -> None:
    for found in pair.run(written.path, PROMPT):
        assert not isinstance(found, str), found
        assert_close(found, written.expected)
