"""Every family split over two ranks, which speak through gloo, and over three stages: transformers' logits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.models.base import CausalLM, KVCaches
from quire.engine.parallel import Parallel, Stage
from tests.engine.models import tiny
from tests.engine.models.families import CASES, write
from tests.engine.models.paging import config_of, load
from tests.engine.models.rank_pair import RankPair, logits_of_steps

PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(75)]
NUM_STAGES = 3


@dataclass
class Written:
    path: Path
    expected: dict[str, torch.Tensor]  # as rank_pair.logits_of_steps


@pytest.fixture(scope="module", params=CASES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    path = tmp_path_factory.mktemp(request.param)
    whole = tiny.logits_of(write(path, request.param), [PROMPT], 128)[0]
    return Written(path, {"most": whole[:-5], "half": whole[:len(PROMPT) // 2], "last": whole[-1:]})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPair]:
    pair = RankPair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def test_two_ranks_give_transformers_logits_or_refuse_heads_that_do_not_divide(written: Written, pair: RankPair
                                                                              ) -> None:
    model = config_of(written.path).model
    found = pair.run(written.path, PROMPT)
    if model.num_heads % 2 == 0 and (model.num_kv_heads % 2 == 0 or model.num_kv_heads == 1):
        for logits in found:
            torch.testing.assert_close(logits, written.expected, atol=1e-4, rtol=1e-4)
    else:
        for refusal in found:
            assert re.search(r"the number of (attention|KV) heads \(\d+\) does not divide by 2", refusal)


def test_three_stages_give_transformers_logits(written: Written) -> None:
    found = logits_of_steps(Pipeline(written.path), PROMPT)
    torch.testing.assert_close(found, written.expected, atol=1e-4, rtol=1e-4)


class Pipeline(CausalLM):
    """Stages that take turns in one process."""

    def __init__(self, path: Path) -> None:
        under_way: list[list[torch.Tensor]] = [[] for _ in range(NUM_STAGES + 1)]  # before each stage, and behind
        self.stages = [load(path, parallel=Parallel(stage=Stage(i, NUM_STAGES, Between(*under_way[i:i + 2]))))
                       for i in range(NUM_STAGES)]
        self.num_layers = sum(stage.num_layers for stage in self.stages)
        self.kv_groups = config_of(path).model.kv_groups
        self.num_kv_heads, self.head_dim = self.stages[0].num_kv_heads, self.stages[0].head_dim
        self.dtype, self.device = self.stages[0].dtype, self.stages[0].device

    def forward(self, token_ids: torch.Tensor, inputs: AttentionInputs, kv_caches: KVCaches) -> torch.Tensor | None:
        hidden = None
        for stage in self.stages:
            mine, kv_caches = kv_caches[:stage.num_layers], kv_caches[stage.num_layers:]
            hidden = stage.forward(token_ids, inputs, mine)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.stages[-1].logits(hidden)


@dataclass
class Between:
    """A stage's neighbours."""

    before: list[torch.Tensor]
    behind: list[torch.Tensor]

    def send(self, x: torch.Tensor) -> None:
        self.behind.append(x.clone())

    def receive(self, x: torch.Tensor) -> None:
        x.copy_(self.before.pop())
