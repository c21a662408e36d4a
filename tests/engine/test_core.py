"""EngineCore on tiny models: what it tells while it works."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.engine.config import EngineArgs
from quire.engine.core import EngineCore
from quire.engine.messages import SampleSpec, Sampling, Submit
from tests.engine.models import tiny

NUM_LAYERS = 2


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_tells_at_each_layer_that_it_gets_on(tmp_path: Path, num_ranks: int) -> None:
    """Ranks of their own tell twice a second: here of the first layer of all."""
    told: list[int] = []
    tiny.write(tmp_path, "llama", num_hidden_layers=NUM_LAYERS)
    core = EngineCore(EngineArgs.of({"model": str(tmp_path), "device": "cpu", "pipeline_parallel_size": num_ranks,
                                     "max_model_len": 64, "cpu_threads": 1}), lambda *_: None, lambda: told.append(1))
    try:
        assert not told
        core.submit("owner", Submit(core.info.instance, "r", [1, 2, 3], Sampling(max_tokens=2), [SampleSpec(1, 1)]))
        num_steps = 0
        while core.has_work:
            core.step()
            num_steps += 1
        if num_ranks == 1:
            assert len(told) == NUM_LAYERS * num_steps
        else:
            assert 1 <= len(told) <= num_ranks * NUM_LAYERS * num_steps
    finally:
        core.close()
