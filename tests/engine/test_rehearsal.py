"""The steps that a GPU's kernels are compiled for before the first real one, carried out here for real; and whether
they are all that real steps need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire import LLM, SamplingParams

# Wrappers believe in a GPU; what they would launch is noted by its name and by what it is compiled for.
VARIANTS = """
import importlib, json, pathlib, sys
from quire.kernels.bench import compile_for
compile_for.pretend(90)
from triton.runtime.jit import JITFunction
launched = set()
def note(kernel, grid):
    def launch(*_, **options):
        launched.add((kernel.fn.__name__, *sorted((k, str(v)) for k, v in options.items() if k.isupper())))
    return launch
JITFunction.__getitem__ = note
import torch
from quire.engine.config import EngineArgs
from quire.engine.execution.device import settle
from quire.engine.execution.hardware import Hardware
from quire.engine.execution.model_runner import ModelRunner
from quire.engine.messages import Sampling
from quire.engine.parallel import Parallel
from quire.engine.plan import NewRow, StepPlan
from quire.engine.weights.locate import resolve_model
from quire.kernels import compile_ahead, ops
ops._FUNCTIONS["cpu"] = {name: getattr(importlib.import_module(f"quire.kernels.{stem}"), name)
                         for name, stem in ops._STEM.items()}
path, heads, kv_heads, head_dim = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5])
(path / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": heads, "head_dim": head_dim,
    "num_key_value_heads": kv_heads, "num_hidden_layers": 3, "intermediate_size": 64, "vocab_size": 512,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5}))
args = EngineArgs(model=str(path), load_format="dummy", device="cpu", dtype="bfloat16", max_num_seqs=1024,
                  max_num_batched_tokens=8192)
runner = ModelRunner(settle(args, resolve_model(args), Hardware(0)), Parallel(), lambda *_: None, lambda: None)
with compile_ahead._Zeros():
    runner._rehearse()
    at_the_start = set(launched)
    assert "_mask" in {name for name, *_ in at_the_start}, "a request with a grammar would wait for its compilation"
    ops.mask_tokens(torch.zeros(40, 512), torch.arange(40).int(), torch.zeros(40, 16, dtype=torch.int32))
    runner.allocate(1)
    for lengths, start in [([60] * 12, 0), ([600], 0), ([200, 200, 300], 0), ([250] * 3, 0), ([30] * 40, 0),
                           ([16] * 400, 0), ([1] * 5 + [60] * 10, 100), ([1] * 5 + [600], 3000),
                           ([1] * 200 + [600], 100), ([1] * 15 + [600], 100), ([1] * 900 + [600], 900)]:
        starts = [start if length == 1 else 0 for length in lengths]
        rows = range(len(lengths))
        runner.launch(StepPlan(
            0, list(rows), starts, lengths, [True] * len(lengths), lengths.count(1),
            [NewRow(row, [0] * (at + n), at + n, Sampling(), 0) for row, at, n in zip(rows, starts, lengths)])).result()
        assert launched == at_the_start, (len(lengths), max(lengths), start, launched - at_the_start)
assert len(at_the_start) > 10
"""


def test_it_takes_two_layers_caches_and_leaves_no_trace() -> None:
    llm = LLM(dtype="float32", max_model_len=512, enable_prefix_caching=False, enforce_eager=True)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    def tokens() -> list[int]:
        return llm.generate(["The lighthouse keeper"], params, use_tqdm=False)[0].outputs[0].token_ids

    before = tokens()
    executor = llm._core._executor
    executor._runner._rehearse()
    assert executor._runner.kv_caches == []
    executor._runner.allocate(executor.num_blocks)
    assert tokens() == before


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(14, 2, 64), (28, 4, 128), (32, 8, 128), (32, 32, 128)])
def test_steps_without_a_graph_need_no_kernel_that_it_did_not_meet(heads: tuple[int, int, int], tmp_path: Path
                                                                   ) -> None:
    pytest.importorskip("triton")
    compiles = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", VARIANTS, str(tmp_path), *map(str, heads)], env=compiles, check=True,
                   timeout=300)
