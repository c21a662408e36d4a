"""What is counted beside the KV cache is what is taken in the end, and the device does not run out. Prints figures."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from quire import LLM
from quire.engine.execution.model_runner import ModelRunner, free_device_bytes
from quire.engine.execution.request_table import RequestTable
from tests.gpu.test_engine_on_gpu import make_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

MIB = 2**20
SLACK_BYTES = 256 * MIB  # of what is predicted: modules of kernels, what allocators round up


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama-gqa")


@pytest.mark.parametrize("rows", [16, 256, 1024])
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_graphs_and_tables_are_counted_before_the_cache(checkpoint: Path, rows: int, enforce_eager: bool,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, int] = {}
    measure, capture, empty = ModelRunner.measure_graphs, ModelRunner._capture, RequestTable.empty

    def measured(runner: ModelRunner) -> int:
        found["predicted"] = measure(runner)
        return found["predicted"]

    def captured(runner: ModelRunner, progress: object) -> None:
        before = free_device_bytes()
        capture(runner, progress)  # type: ignore[arg-type]
        found["taken"] = before - free_device_bytes()

    def table(*args: object) -> RequestTable:
        before = free_device_bytes()
        made = empty(*args)  # type: ignore[arg-type]
        found["table"] = before - free_device_bytes()
        return made

    monkeypatch.setattr(ModelRunner, "measure_graphs", measured)
    monkeypatch.setattr(ModelRunner, "_capture", captured)
    monkeypatch.setattr(RequestTable, "empty", table)
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    llm = LLM(model=str(checkpoint), dtype="bfloat16", skip_tokenizer_init=True, max_num_seqs=rows,
              enforce_eager=enforce_eager, gpu_memory_utilization=0.9)
    try:
        taken = found.get("taken", 0)
        free = free_device_bytes()
        print(f"\n{rows} rows{', eager' if enforce_eager else ''}: predicted {found['predicted'] / MIB:.0f} MiB of "
              f"graphs, taken {taken / MIB:.0f}; token and block tables {found['table'] / MIB:.0f} MiB; KV cache of "
              f"{llm.info.num_blocks * llm.info.block_size} tokens; {free / MIB:.0f} of {total / MIB:.0f} MiB free "
              f"(--gpu-memory-utilization 0.9 leaves {0.1 * total / MIB:.0f})")
        assert abs(found["predicted"] - taken) < SLACK_BYTES
        assert free > 0.1 * total - SLACK_BYTES
    finally:
        llm.close()
