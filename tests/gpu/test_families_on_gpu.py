"""Every family through the Triton kernels: the logits of its tiny checkpoints are near transformers' in float32.

A prompt whole, in chunks and token by token, as on a CPU; in bfloat16 the distance is to be a few times that of
transformers' own model in bfloat16 at most: 2, or 3 where rounding may also send a token to another expert.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.engine.models import tiny
from tests.engine.models.families import CASES, write
from tests.engine.models.paging import PagedRun, load
from tests.engine.models.test_other_families import OTHERS

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(75)]
FLOOR = 1e-2  # below it, a ratio of two roundings says nothing


def distance(ours: torch.Tensor, right: torch.Tensor) -> float:
    """|ours - right| / |right|"""
    return float((ours.float().cpu() - right).norm() / right.norm())


@pytest.mark.parametrize("case", CASES)
def test_logits_are_near_transformers(case: str, tmp_path: Path) -> None:
    check(write(tmp_path, case), tmp_path, factor=3.0 if "num_experts_per_tok" in CASES[case][1] else 2.0)


@pytest.mark.parametrize("case", OTHERS)
def test_by_transformers_own_code_they_are_too(case: str, tmp_path: Path) -> None:
    family, config = OTHERS[case]
    check(tiny.write(tmp_path, family, **config), tmp_path, factor=2.0, model_impl="transformers")


def check(reference: PreTrainedModel, path: Path, *, factor: float, **args: str) -> None:
    right = tiny.logits_of(reference, [PROMPT], 128)[0]
    allowed = {"float32": 1e-3,  # seen: 5e-4 where scores have a soft cap, 3e-6 elsewhere
               "bfloat16": max(FLOOR, factor * distance(tiny.logits_of(reference.bfloat16(), [PROMPT], 128)[0], right))}
    for dtype, most in allowed.items():
        model = load(path, dtype=dtype, on="cuda", **args)
        for lengths in ([75], [20, 1, 33, 16, 5], [1] * 75):
            run, parts, start = PagedRun(model, 1, 128), [], 0
            for length in lengths:
                parts.append(run.step({0: PROMPT[start:start + length]})[0])
                start += length
            found = distance(torch.cat(parts), right)
            print(f"{dtype} in {len(lengths)}: {found:.2g} of {most:.2g}")
            assert found <= most, (dtype, lengths)
