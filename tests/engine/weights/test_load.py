"""Loading as a whole: progress, dummy weights, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quire.engine.weights import progress
from quire.engine.weights.progress import reporter
from tests.engine.models import tiny
from tests.engine.models.paging import PagedRun, load


def test_progress_rises_from_nothing_to_one(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    seen: list[float] = []
    load(tmp_path, progress=lambda phase, fraction: seen.append(fraction))
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    assert 5 < len(seen) <= 102


def test_dummy_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    tiny.write(tmp_path, "qwen2")
    (tmp_path / "model.safetensors").unlink()
    runs = [PagedRun(load(tmp_path, load_format="dummy", seed=seed), 1, 32).step({0: [1, 2, 3]})[0]
            for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    assert runs[0].isfinite().all()
    assert runs[0].std() > 0


def test_lines_are_logged_a_quarter_at_a_time(capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[str, int]] = []

    class Log:
        def info(self, phase: str, percent: int, elapsed_s: float) -> None:
            lines.append((phase, percent))

    monkeypatch.setattr(progress, "_log", Log())
    also: list[float] = []
    with reporter(lambda phase, fraction: also.append(fraction)) as report:
        for i in range(101):
            report("one", i / 100)
        report("two", 1.0)
    assert [percent for phase, percent in lines if phase == "one"] == [0, 25, 50, 75, 100]
    assert lines[-1] == ("two", 100)
    assert len(also) == 102


def test_loading_leaves_little_more_in_memory_than_the_weights(smollm2_path: Path) -> None:
    code = """
import resource, torch
torch.set_num_threads(2)
from tests.engine.models.paging import load
import quire.engine.models.llama, quire.engine.weights.gguf
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
model = load("smollm2-135m-instruct")
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    weights_mib = (134_515_008 + 49152 * 576) * 4 / 2**20  # the head has a copy of its own on CPU
    assert float(done.stdout) < weights_mib * 1.25
