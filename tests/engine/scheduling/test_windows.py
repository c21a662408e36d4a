"""What a long request holds of the KV cache, where layers have windows: the blocks that they still see."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.engine.config import SchedulerConfig
from quire.engine.kv_groups import BlockNeed, Window, kv_groups
from quire.engine.messages import Sampling
from quire.engine.plan import StepResult
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler
from quire.engine.weights import hf_config

BLOCK, LONG = 16, 32768
GEMMA = hf_config.read(Path("loadtest/models/gemma-3-4b"), with_generation_defaults=False)
# Ministral's pattern: one layer without a window, then three with.
PATTERNS: dict[str, tuple[Window, ...]] = {"gemma-3-4b": GEMMA.windows, "ministral": (None, 4096, 4096, 4096) * 9}


@pytest.mark.parametrize(("pattern", "most"), [("gemma-3-4b", 0.18), ("ministral", 0.37)])
def test_a_request_of_32k_tokens_holds_a_part_of_what_full_attention_would(pattern: str, most: float) -> None:
    windows = PATTERNS[pattern]
    groups = kv_groups(windows, len(windows))
    s = Scheduler(SchedulerConfig(num_blocks=20000, block_size=BLOCK, max_num_seqs=4, max_num_batched_tokens=2048,
                                  max_model_len=40000, windows=groups.windows))
    request = Request("long", [1] * LONG, Sampling(max_tokens=100), 0)
    s.add([request])
    shares = []
    while len(request.token_ids) < LONG + 40:
        plan = s.plan()
        assert plan is not None
        held = groups.depth * sum(len(run.blocks) for run in request.blocks)  # blocks of one layer
        shares.append(held / (len(windows) * -(-request.num_total // BLOCK)))
        s.commit(plan, StepResult([1] * sum(plan.samples)))
    assert shares[-1] < most
    assert max(shares) < most + 0.09, "while it is computed, a step's tokens are added"
    s.abort("long")
    assert s.kv_usage == 0


def test_layers_of_one_window_are_dealt_out_to_groups_of_one_size() -> None:
    groups = kv_groups(GEMMA.windows, GEMMA.num_layers)
    assert groups.windows == (None, *[1024] * 6)
    assert groups.depth == 5
    places = set(zip(groups.group_of, groups.depths))
    assert len(places) == GEMMA.num_layers, "no two layers have one place"
    assert all(groups.windows[group] == window for group, window in zip(groups.group_of, GEMMA.windows))
    stage = groups.of_layers(range(17, 34))
    assert stage.windows == groups.windows
    assert stage.group_of == groups.group_of[17:]
    assert stage.depth == 3
    assert groups.num_telling_layers == 5, "layer 29 is the last without a window"


@pytest.mark.parametrize("windows", [(), (None,) * 7, (4096,) * 7])
def test_layers_that_are_alike_are_one_group(windows: tuple[Window, ...]) -> None:
    groups = kv_groups(windows, 7)
    assert len(groups.windows) == 1
    assert groups.depths == tuple(range(7))


def test_a_rare_layer_does_not_make_many_groups() -> None:
    groups = kv_groups((None, *[8] * 39), 40)
    assert groups.windows == (None, *[8] * 7)


@pytest.mark.parametrize("windows", [(None,), (None, 40), (40,), (None, 3, 100)])
def test_room_is_what_the_longest_sequence_needs(windows: tuple[Window, ...]) -> None:
    need = BlockNeed(windows, BLOCK, 64)
    for num_blocks in (1, 7, 8, 20, 100):
        room = need.room(num_blocks)
        assert need.blocks_for(room) <= num_blocks
        assert room > 2**30 or need.blocks_for(room + 1) > num_blocks
