"""Shares of ranks, and two real ranks over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from quire.engine.errors import ConfigError
from quire.engine.parallel import Parallel
from tests.engine.models import tiny
from tests.engine.models.paging import PagedRun, load


@given(size=st.sampled_from([1, 2, 4, 8]), times=st.integers(1, 50))
def test_shares_cover_everything_once(size: int, times: int) -> None:
    shares = [Parallel(rank, size).share(times * size, "it") for rank in range(size)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(times * size))


@given(size=st.sampled_from([1, 2, 4, 8]), heads=st.sampled_from([1, 2, 4, 8, 16]))
def test_every_rank_has_the_kv_heads_of_its_query_heads(size: int, heads: int) -> None:
    num_heads = 4 * max(size, heads)
    group = num_heads // heads
    for rank in range(size):
        queries = Parallel(rank, size).share(num_heads, "heads")
        mine = Parallel(rank, size).share_kv_heads(heads)
        assert {q // group for q in range(queries.start, queries.stop)} == set(range(mine.start, mine.stop))


def test_what_does_not_divide_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"the vocabulary \(97\) does not divide by 2"):
        Parallel(0, 2).share(97, "the vocabulary")
    with pytest.raises(ConfigError, match=r"4 is not a multiple of the number of KV heads \(3\)"):
        Parallel(0, 4).share_kv_heads(3)


# At the end without gloo's teardown, which ranks of an engine never reach, and which sometimes aborts in torch 2.5.
RANK = """
import os, sys, torch
from safetensors.torch import save_file
torch.set_num_threads(1)
from quire.engine.execution.collectives import join
from tests.engine.models.paging import PagedRun, config_of, load
rank, path = int(sys.argv[1]), sys.argv[2]
store = torch.distributed.FileStore(f"{path}/meeting", 2)
parallel = join(rank, config_of(path, tensor_parallel_size=2), store, torch.device("cpu"))
run = PagedRun(load(path, parallel=parallel), 1, 64)
save_file({"logits": run.step({0: [3, 1, 4, 1, 5, 9, 2, 6]})[0]}, f"{path}/logits{rank}")
store.set(f"done {rank}", "")
store.wait(["done 0", "done 1"])
os._exit(0)
"""


@pytest.mark.parametrize("num_kv_heads", [2, 1])
def test_two_ranks_equal_one(num_kv_heads: int, tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama", num_key_value_heads=num_kv_heads, attention_bias=True, mlp_bias=True)
    whole = PagedRun(load(tmp_path), 1, 64).step({0: [3, 1, 4, 1, 5, 9, 2, 6]})[0]
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    for rank in range(2):
        got = load_file(tmp_path / f"logits{rank}")["logits"]
        torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-4)
