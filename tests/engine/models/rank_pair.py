"""Two ranks in processes of their own, which gloo joins once and which then run one checkpoint after the other.

`python -m tests.engine.models.rank_pair RANK FOLDER` is one of them. Starting two costs seconds, a further model some
hundredths of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from quire.engine.errors import ConfigError
from quire.engine.execution.collectives import join
from quire.engine.models.base import CausalLM
from tests.engine.models.paging import PagedRun, config_of, load

SIZE = 2


def logits_of_steps(model: CausalLM, prompt: list[int]) -> dict[str, torch.Tensor]:
    """The logits of the prompt and of its first half, in steps of every kind: both at once, a decode beside a chunk,
    single tokens, and one whose last layer goes on with the last token alone."""
    run, half = PagedRun(model, 2, 128), len(prompt) // 2
    both = run.step({0: prompt[:20], 1: prompt[:half - 1]})
    mixed = run.step({1: prompt[half - 1:half], 0: prompt[20:-8]})
    singles = [run.step({0: [token]})[0] for token in prompt[-8:-5]]
    last = run.step({0: prompt[-5:]}, only_last=True)[0]
    return {"most": torch.cat((both[0], mixed[0], *singles)), "half": torch.cat((both[1], mixed[1])), "last": last}


class RankPair:
    """Started when first needed, and again after a failure, which ends both ranks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranks: list[subprocess.Popen[str]] = []

    def run(self, path: Path, prompt: list[int], **args: Any) -> list[dict[str, torch.Tensor] | str]:
        """Of each rank, what `logits_of_steps` gave, or by which words the checkpoint at `path` was refused.

        Raises RuntimeError where a rank failed; why is on stderr.
        """
        if not self._ranks:
            meeting = tempfile.mkdtemp(dir=self._folder)
            self._ranks = [subprocess.Popen([sys.executable, "-m", __name__, str(rank), meeting], text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE) for rank in range(SIZE)]
        try:
            for rank in self._ranks:
                print(json.dumps([str(path), prompt, args]), file=rank.stdin, flush=True)
            answers = [rank.stdout.readline().rstrip() for rank in self._ranks]
            if not all(answers):
                raise RuntimeError(f"rank {answers.index('')} ended")
        except BaseException:
            self.close()
            raise
        return [load_file(path / f"rank{rank}") if answer == "done" else answer for rank, answer in enumerate(answers)]

    def close(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.communicate()
        self._ranks = []


def serve(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    parallel = None
    for line in sys.stdin:
        path, prompt, args = json.loads(line)
        if parallel is None:
            store = torch.distributed.FileStore(f"{meeting}/store", SIZE)
            parallel = join(rank, config_of(path, tensor_parallel_size=SIZE), store, torch.device("cpu"))
        try:
            save_file(logits_of_steps(load(path, parallel=parallel, **args), prompt), f"{path}/rank{rank}")
            answer = "done"
        except ConfigError as error:
            answer = str(error)
        print(answer, flush=True)


if __name__ == "__main__":
    try:
        serve(int(sys.argv[1]), sys.argv[2])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # without gloo's teardown: the other rank must hear of it at once
