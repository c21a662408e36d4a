"""Runs a model through a paged cache by hand: the steps that the engine would plan, chosen by the test."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.config import EngineArgs, EngineConfig
from quire.engine.execution import kv_cache
from quire.engine.kv_groups import BlockNeed
from quire.engine.models.base import CausalLM
from quire.engine.parallel import Parallel
from quire.engine.weights.load import load_model
from quire.engine.weights.locate import resolve_model

BLOCK_SIZE = 16


def load(path: Path | str, *, max_model_len: int = 128, dtype: str = "float32",
         progress: Callable[[str, float], None] = lambda phase, fraction: None, parallel: Parallel | None = None,
         on: str = "cpu", **args: Any) -> CausalLM:
    config = config_of(path, max_model_len=max_model_len, dtype=dtype, **args)
    return load_model(config, parallel or Parallel(), torch.device(on), getattr(torch, dtype), progress)


def config_of(path: Path | str, *, max_model_len: int = 128, dtype: str = "float32", **args: Any) -> EngineConfig:
    engine_args = EngineArgs(model=str(path), **args)
    return EngineConfig(args=engine_args, model=resolve_model(engine_args), device="cpu", dtype=dtype,
                        max_model_len=max_model_len, max_num_seqs=8, max_num_batched_tokens=512, num_steps_ahead=0)


class PagedRun:
    """Some sequences in one cache, their blocks scattered. A block that no token sees any more is lost at once: the
    last block, full of NaN, takes its place."""

    def __init__(self, model: CausalLM, num_seqs: int, max_len: int) -> None:
        self.model = model
        groups = model.kv_groups
        self._need = BlockNeed(groups.windows, BLOCK_SIZE, max_len)
        shape = (len(groups.windows), num_seqs, -(-max_len // BLOCK_SIZE))
        num_blocks = math.prod(shape)
        self._tables = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).int().view(shape)
        self._lens = [0] * num_seqs
        self._device = model.device
        storage = kv_cache.allocate(groups.depth, num_blocks + 1, model.num_kv_heads, BLOCK_SIZE, model.head_dim,
                                    model.dtype, self._device)
        for k_cache, v_cache in storage:
            k_cache[-1], v_cache[-1] = float("nan"), float("nan")
        self._caches = [storage[depth] for depth in groups.depths]

    @torch.inference_mode()
    def step(self, chunks: dict[int, list[int]], *, only_last: bool = False) -> dict[int, torch.Tensor]:
        """Sequence -> its next tokens; single ones first. Returns the logits of every token, [tokens, vocab], or only
        of the last, [1, vocab]."""
        def put(x: torch.Tensor) -> torch.Tensor:
            return x.int().to(self._device)

        seqs, counts = list(chunks), [len(tokens) for tokens in chunks.values()]
        num_decodes = next((i for i, count in enumerate(counts) if count > 1), len(counts))
        starts = [self._lens[s] for s in seqs]
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, counts)])
        rows = torch.tensor(seqs).repeat_interleave(torch.tensor(counts))
        for group in range(len(self._tables)):
            for s, start in zip(seqs, starts):
                self._tables[group, s, :self._need.first_column(group, start)] = len(self._caches[0][0]) - 1
        blocks = self._tables[:, rows, positions // BLOCK_SIZE]
        slots = put(blocks * BLOCK_SIZE + positions % BLOCK_SIZE)
        tables = put(self._tables[:, seqs])
        contexts = [a + n for a, n in zip(starts, counts)]
        query_starts = torch.tensor([0, *counts]).cumsum(0).int()
        on_cpu = self._device.type == "cpu"
        inputs = AttentionInputs(
            positions=put(positions),
            slots=slots[0],
            query_starts=put(query_starts),
            context_lens=put(torch.tensor(contexts)),
            block_tables=tables[0],
            num_decodes=num_decodes,
            max_query_len=max(counts),
            max_context_len=max(contexts),
            first_whole=len(seqs),
            last_tokens=put(query_starts[1:] - 1) if only_last else None,
            host_query_lens=counts if on_cpu else None,
            host_context_lens=contexts if on_cpu else None,
        ).of_groups(slots, tables)
        token_ids = put(torch.tensor([token for tokens in chunks.values() for token in tokens]))
        logits = self.model.logits(self.model.forward(token_ids, inputs, self._caches))
        for s, n in zip(seqs, counts):
            self._lens[s] += n
        return dict(zip(seqs, logits.split(1 if only_last else counts)))
